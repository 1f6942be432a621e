"""The benchmarks: each measures the product and its references in one run on one machine.

    python -m tests.benchmarks all
    python -m tests.benchmarks publish [--events N] [--runs N] [--reference-tree DIR] [--json FILE]
    python -m tests.benchmarks outage [--seconds S] [--rate N] [--json FILE]
    python -m tests.benchmarks import [--runs N] [--json FILE]
    python -m tests.benchmarks read [--seconds S] [--runs N] [--reference-tree DIR] [--json FILE]
    python -m tests.benchmarks watch [--watchers N] [--rate N] [--seconds S] [--json FILE]
    python -m tests.benchmarks latency [--rates N,N] [--samples N] [--runs N] [--reference-tree DIR]
        [--json FILE]
    python -m tests.benchmarks ingest [--events N] [--runs N] [--reference-tree DIR] [--json FILE]
    python -m tests.benchmarks handover [--runs N] [--rate N] [--json FILE]
    python -m tests.benchmarks memory [--events N] [--seconds S] [--runs N] [--reference-tree DIR]
        [--json FILE]
    python -m tests.benchmarks growth [--events N] [--sizes M,M] [--runs N] [--json FILE]
    python -m tests.benchmarks questions [--events N] [--tenants N,N] [--failures P,P] [--runs N]
        [--json FILE]
    python -m tests.benchmarks executions [--executions N] [--depth N] [--failures P,P]
        [--seconds S] [--runs N] [--json FILE]
    python -m tests.benchmarks peers [--events N] [--runs N] [--kill] [--only NAME] [--json FILE]

A missed bar is printed and does not change the exit code. The exit code is 1 if a result was wrong:
an event lost or out of order, a wrong count, a wrong answer.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.benchmarks import (
    executions,
    growth,
    handover,
    imports,
    ingest,
    latency,
    memory,
    outage,
    publish,
    questions,
    read,
    report,
    watch,
)
from tests.benchmarks.dataset import Dataset
from tests.benchmarks.peers import comparison
from tests.benchmarks.peers.peer import PEERS
from tests.benchmarks.report import Report
from tests.benchmarks.trees import Tree

_Run = Callable[[argparse.Namespace], Coroutine[Any, Any, Report]]


ALL = (
    "publish --events 50000 --runs 3",
    "read --seconds 2",
    "watch",
    "latency --samples 300",
    "ingest --runs 3",
    "handover --runs 1",
    "memory --events 100000",
)
"""The runs of `all`, in turn; about ten minutes on two cores."""


def main() -> int:
    """Run the benchmark of the command line and return the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.run is None:
        return max([_run(parser.parse_args(line.split())) for line in ALL])
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    run: _Run = arguments.run
    # Read before the benchmark adds its own load.
    machine = report.machine()
    done = asyncio.run(run(arguments))
    print(report.heading(machine), done.text(), sep="\n\n", end="\n\n", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(done.json(machine) + "\n")
    return 1 if done.broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("all", help="several of these, in about ten minutes")
    command.set_defaults(run=None)

    command = _add(
        commands, "publish", lambda a: publish.run(a.events, a.runs, a.reference_tree), publish
    )
    command.add_argument("--events", type=_positive, default=50_000, help="events of one run")
    command.add_argument("--runs", type=_positive, default=5, help="runs of each variant")
    _add_tree(command, "publishers")

    command = _add(commands, "outage", lambda a: outage.run(a.seconds, a.rate), outage)
    command.add_argument("--seconds", type=_positive, default=60, help="length of the outage")
    command.add_argument("--rate", type=_positive, default=1000, help="events a second")

    command = _add(commands, "import", lambda a: imports.run(a.runs), imports)
    command.add_argument("--runs", type=_positive, default=15, help="runs of each import")

    command = _add(
        commands,
        "read",
        lambda a: read.run(Dataset(a.executions, a.long), a.seconds, a.runs, a.reference_tree),
        read,
    )
    command.add_argument("--seconds", type=_seconds, default=3, help="length of one run")
    command.add_argument("--runs", type=_positive, default=3, help="runs of each case")
    _add_dataset(command)
    _add_tree(command, "reader")

    command = _add(
        commands, "watch", lambda a: watch.run(a.watchers, a.executions, a.rate, a.seconds), watch
    )
    command.add_argument("--watchers", type=_positive, default=1000, help="number of watchers")
    command.add_argument("--executions", type=_positive, default=100, help="watched executions")
    command.add_argument("--rate", type=_positive, default=100, help="changes a second")
    command.add_argument("--seconds", type=_seconds, default=30, help="time with changes")

    command = _add(
        commands,
        "latency",
        lambda a: latency.run(a.rates, a.samples, a.runs, a.reference_tree),
        latency,
    )
    command.add_argument("--rates", type=_numbers, default="10,1000,10000", help="events a second")
    command.add_argument(
        "--samples", type=_positive, default=2000, help="minimum samples of each rate"
    )
    command.add_argument("--runs", type=_positive, default=1, help="runs at each rate")
    _add_tree(command, "publisher, consumer and reader")

    command = _add(
        commands, "ingest", lambda a: ingest.run(a.events, a.runs, a.reference_tree), ingest
    )
    command.add_argument("--events", type=_positive, default=200_000, help="records to store")
    command.add_argument("--runs", type=_positive, default=5, help="runs of each variant")
    _add_tree(command, "consumer")

    command = _add(commands, "handover", lambda a: handover.run(a.runs, a.rate), handover)
    command.add_argument("--runs", type=_positive, default=3, help="runs of each signal")
    command.add_argument("--rate", type=_positive, default=600, help="records a second")

    command = _add(
        commands,
        "memory",
        lambda a: memory.run(
            a.events, Dataset(a.executions, a.long), a.seconds, a.runs, a.reference_tree
        ),
        memory,
    )
    command.add_argument(
        *("--events",),
        type=_positive,
        default=200_000,
        help="records of the first backlog; the second has three times as many",
    )
    command.add_argument("--seconds", type=_seconds, default=5, help="time of reading lists")
    command.add_argument("--runs", type=_positive, default=1, help="runs of each case")
    _add_dataset(command)
    _add_tree(command, "consumer and reader")

    command = _add(
        commands,
        "growth",
        lambda a: growth.run(a.events, a.sizes, a.loop, a.runs, a.seconds),
        growth,
    )
    command.add_argument("--events", type=_positive, default=200_000, help="records to store")
    command.add_argument(
        "--sizes", type=_sizes, default="0.1,1,10", help="millions of events stored before"
    )
    command.add_argument(
        "--loop", type=_positive, default=100_000, help="occurrences of each crash loop"
    )
    command.add_argument("--runs", type=_positive, default=3, help="runs of each variant")
    command.add_argument("--seconds", type=_seconds, default=3, help="length of one run of reads")

    command = _add(
        commands,
        "questions",
        lambda a: questions.run(a.events, a.tenants, a.failures, a.runs),
        questions,
    )
    command.add_argument(
        "--events", type=_positive, default=1_000_000, help="events stored before, about"
    )
    command.add_argument("--tenants", type=_numbers, default="1,200", help="numbers of tenants")
    command.add_argument(
        "--failures", type=_percentages, default="2,0.01", help="percentages of actions that fail"
    )
    command.add_argument("--runs", type=_positive, default=20, help="runs of each question")

    command = _add(
        commands,
        "executions",
        lambda a: executions.run(a.executions, a.depth, a.failures, a.seconds, a.runs),
        executions,
    )
    command.add_argument(
        "--executions", type=_positive, default=1_000_000, help="executions stored before"
    )
    command.add_argument(
        "--depth", type=_positive, default=100_000, help="executions before a deep page"
    )
    command.add_argument(
        "--failures", type=_percentages, default="2,0.01", help="percentages that failed"
    )
    command.add_argument("--seconds", type=_seconds, default=3, help="length of one run")
    command.add_argument("--runs", type=_positive, default=3, help="runs of each list")

    command = _add(
        commands,
        "peers",
        lambda a: comparison.run(a.events, a.runs, a.kill, a.only),
        comparison,
    )
    command.add_argument("--events", type=_positive, default=200_000, help="records to store")
    command.add_argument("--runs", type=_positive, default=3, help="runs of each peer")
    command.add_argument(
        "--kill", action="store_true", help="add as many runs with one SIGKILL each"
    )
    command.add_argument(
        *("--only",),
        action="append",
        default=[],
        choices=[peer.key for peer in PEERS],
        help="compare only this peer; repeat for several",
    )
    return parser


def _add(commands: Any, name: str, run: _Run, module: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=module.__doc__)
    command.set_defaults(run=run)
    command.add_argument("--json", type=Path, metavar="FILE", help="file for all figures")
    return command


def _add_tree(command: argparse.ArgumentParser, measured: str) -> None:
    command.add_argument(
        "--reference-tree",
        type=_tree,
        metavar="DIR",
        help=f"checkout of another commit with its own .venv, whose {measured} run in turn with"
        " this tree's",
    )


def _add_dataset(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--executions", type=_positive, default=2000, help="executions of 140 events each"
    )
    command.add_argument(
        "--long", type=_positive, default=100_000, help="events of one more execution"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 3600:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds below 3600")
    return seconds


def _tree(text: str) -> Tree:
    try:
        return Tree.at(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _sizes(text: str) -> list[float]:
    try:
        sizes = [float(each) for each in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not all(0 < size <= 1000 for size in sizes):
        raise argparse.ArgumentTypeError(
            f"{text} is not a list of millions of events, such as 0.1,1,10"
        )
    return sizes


def _percentages(text: str) -> list[float]:
    try:
        percentages = [float(each) for each in text.split(",")]
    except ValueError:
        percentages = []
    if not percentages or not all(0 <= each <= 100 for each in percentages):
        raise argparse.ArgumentTypeError(f"{text} is not a list of percentages, such as 2,0.01")
    return percentages


def _numbers(text: str) -> list[int]:
    return [_positive(each) for each in text.split(",")]


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
