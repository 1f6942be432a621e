"""The fault harness.

    python -m tests.faults list
    python -m tests.faults run [--row ROW ...] [--episodes N | --short | --long | --full] [--seed S]
    python -m tests.faults mutants [--only NAME ...]
    python -m tests.faults report

To replay an episode, pass its row and seed: `run --row ROW --seed S --episodes 1`. `run` exits with
1 on a violation, `mutants` if a mutant is not caught.
"""

import argparse
import asyncio
import logging
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.faults import mutants, results
from tests.faults.episode import Row
from tests.faults.results import Result
from tests.faults.rows import ROWS, row
from tests.faults.runner import Planned, run_all, snapshot

_CONCURRENCY = 3
"""Concurrent episodes in a short run."""


def main() -> int:
    """Run the command and return its exit code."""
    # The harness's own clients hit the faults too and would flood the log.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    arguments = _parser().parse_args()
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="list the rows and their episodes in a full run")
    listing.set_defaults(run=_list)

    running = commands.add_parser("run", help="run episodes")
    names = [each.name for each in ROWS]
    running.add_argument(
        "--row",
        action="append",
        choices=names,
        metavar="ROW",
        help="row to run (default: all rows of the chosen size); can be repeated",
    )
    size = running.add_mutually_exclusive_group()
    size.add_argument("--episodes", type=int, metavar="N", help="episodes of each row")
    size.add_argument(
        "--short", action="store_true", help="one episode of each short row (default)"
    )
    size.add_argument("--long", action="store_true", help="one episode of each long row")
    size.add_argument(
        "--full",
        action="store_true",
        help="every episode of every row, except those recorded as passed",
    )
    running.add_argument(
        "--seed", type=int, metavar="S", help="seed of the first episode of each row"
    )
    running.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help=f"file for the results (default with --full: {results.RESULTS})",
    )
    running.set_defaults(run=_run)

    mutating = commands.add_parser(
        "mutants", help="check that each mutant of the product is caught"
    )
    mutating.add_argument(
        "--only",
        action="append",
        choices=[mutant.name for mutant in mutants.MUTANTS],
        metavar="NAME",
        help="mutant to check (default: all); can be repeated",
    )
    mutating.set_defaults(run=_mutants)

    reporting = commands.add_parser("report", help=f"write {results.REPORT.name}")
    reporting.set_defaults(run=_report)
    return parser


def _list(_: argparse.Namespace) -> int:
    for each in ROWS:
        print(f"{each.name:18} {each.episodes:3}  {each.title}")
    print(f"{'all':18} {sum(each.episodes for each in ROWS):3}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    path = arguments.report or (results.RESULTS if arguments.full else None)
    plan = _plan(arguments, results.episodes(path) if path is not None else [])

    def record(result: Result) -> None:
        if path is not None:
            results.append(result, path)

    with snapshot() as source:
        # Recovery times for the report must not depend on other episodes.
        concurrency = 1 if arguments.full or arguments.episodes else _CONCURRENCY
        done = asyncio.run(run_all(source, plan, record, concurrency=concurrency))
    ran = [result for result in done if result.missing is None]
    failed = [result for result in ran if not result.passed]
    print(f"{len(ran)} episodes, {len(failed)} failed")
    for result in failed:
        print(f"  --row {result.row} --seed {result.seed} --episodes 1")
    if arguments.full and arguments.report is None:
        _write_report()
    return 1 if failed else 0


def _plan(arguments: argparse.Namespace, recorded: Iterable[Result]) -> list[Planned]:
    chosen: Sequence[Row] = ROWS
    if arguments.row:
        chosen = [row(name) for name in arguments.row]
    elif not arguments.full and arguments.episodes is None:
        chosen = [each for each in ROWS if each.is_long == arguments.long]
    if arguments.full:
        # Fixed seeds make an interrupted run resumable.
        passed = {key for key, last in results.latest(recorded).items() if last.passed}
        first = arguments.seed or 1
        return [
            Planned(each, seed)
            for each in chosen
            for seed in range(first, first + each.episodes)
            if (each.name, seed) not in passed
        ]
    seed = arguments.seed if arguments.seed is not None else random.randrange(1, 2**31)
    return [
        Planned(each, seed + number) for each in chosen for number in range(arguments.episodes or 1)
    ]


def _mutants(arguments: argparse.Namespace) -> int:
    escaped = 0
    for mutant in mutants.MUTANTS:
        if arguments.only is None or mutant.name in arguments.only:
            caught = asyncio.run(mutants.hunt(mutant))
            results.append(caught)
            escaped += caught.row is None
    _write_report()
    return 1 if escaped else 0


def _report(_: argparse.Namespace) -> int:
    _write_report()
    return 0


def _write_report() -> None:
    descriptions = {mutant.name: mutant.description for mutant in mutants.MUTANTS}
    results.REPORT.write_text(results.report(descriptions=descriptions))


if __name__ == "__main__":
    sys.exit(main())
