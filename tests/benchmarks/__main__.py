"""The benchmarks. Each is one run on one machine, with the references that it is compared with.

    python -m tests.benchmarks all
    python -m tests.benchmarks publish [--events N] [--runs N] [--json FILE]
    python -m tests.benchmarks outage [--seconds S] [--rate N] [--json FILE]
    python -m tests.benchmarks import [--runs N] [--json FILE]
    python -m tests.benchmarks read [--seconds S] [--runs N] [--json FILE]
    python -m tests.benchmarks watch [--watchers N] [--rate N] [--seconds S] [--json FILE]
    python -m tests.benchmarks latency [--rates N,N] [--samples N] [--json FILE]
    python -m tests.benchmarks ingest [--events N] [--runs N] [--reference-tree PATH] [--json FILE]
    python -m tests.benchmarks handover [--runs N] [--rate N] [--json FILE]
    python -m tests.benchmarks memory [--events N] [--seconds S] [--json FILE]
    python -m tests.benchmarks growth [--events N] [--sizes M,M] [--runs N] [--json FILE]
    python -m tests.benchmarks peers [--events N] [--runs N] [--kill] [--only NAME] [--json FILE]

A bar that is missed is printed; the exit code is 1 only where something was wrong: an event lost or
misplaced, a count, an answer.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.benchmarks import (
    growth,
    handover,
    imports,
    ingest,
    latency,
    memory,
    outage,
    publish,
    read,
    report,
    watch,
)
from tests.benchmarks.dataset import Dataset
from tests.benchmarks.peers import comparison
from tests.benchmarks.peers.peer import PEERS
from tests.benchmarks.report import Report

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
"""What `all` runs, one after the other: in about ten minutes on two cores."""


def main() -> int:
    """Parse, run, print, and give the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.run is None:
        return max([_run(parser.parse_args(line.split())) for line in ALL])
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    run: _Run = arguments.run
    # The load of the machine without the benchmark's own.
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

    every = commands.add_parser("all", help="several of these, in about ten minutes")
    every.set_defaults(run=None)

    publishing = _add(commands, "publish", lambda a: publish.run(a.events, a.runs), publish)
    publishing.add_argument("--events", type=_positive, default=50_000, help="of one run")
    publishing.add_argument("--runs", type=_positive, default=5, help="of each variant")

    away = _add(commands, "outage", lambda a: outage.run(a.seconds, a.rate), outage)
    away.add_argument("--seconds", type=_positive, default=60, help="that the broker is away")
    away.add_argument("--rate", type=_positive, default=1000, help="events a second")

    importing = _add(commands, "import", lambda a: imports.run(a.runs), imports)
    importing.add_argument("--runs", type=_positive, default=15, help="of each import")

    reading = _add(
        commands,
        "read",
        lambda a: read.run(Dataset(a.executions, a.long), a.seconds, a.runs),
        read,
    )
    reading.add_argument("--seconds", type=_seconds, default=3, help="of one run")
    reading.add_argument("--runs", type=_positive, default=3, help="of each variant")
    reading.add_argument("--executions", type=_positive, default=2000, help="with 140 events")
    reading.add_argument("--long", type=_positive, default=100_000, help="events of one more")

    watching = _add(
        commands, "watch", lambda a: watch.run(a.watchers, a.executions, a.rate, a.seconds), watch
    )
    watching.add_argument("--watchers", type=_positive, default=1000, help="in all")
    watching.add_argument("--executions", type=_positive, default=100, help="that are watched")
    watching.add_argument("--rate", type=_positive, default=100, help="changes a second")
    watching.add_argument("--seconds", type=_seconds, default=30, help="with changes")

    seeing = _add(commands, "latency", lambda a: latency.run(a.rates, a.samples), latency)
    seeing.add_argument("--rates", type=_rates, default="10,1000,10000", help="events a second")
    seeing.add_argument("--samples", type=_positive, default=2000, help="of each rate at least")

    ingesting = _add(
        commands, "ingest", lambda a: ingest.run(a.events, a.runs, a.reference_tree), ingest
    )
    ingesting.add_argument("--events", type=_positive, default=200_000, help="records to store")
    ingesting.add_argument("--runs", type=_positive, default=5, help="of each variant")
    ingesting.add_argument(
        *("--reference-tree",),
        type=_tree,
        metavar="PATH",
        help="another checkout with its own .venv, whose consumer is measured too",
    )

    ending = _add(commands, "handover", lambda a: handover.run(a.runs, a.rate), handover)
    ending.add_argument("--runs", type=_positive, default=3, help="of each signal")
    ending.add_argument("--rate", type=_positive, default=600, help="records a second")

    remembering = _add(
        commands,
        "memory",
        lambda a: memory.run(a.events, Dataset(a.executions, a.long), a.seconds),
        memory,
    )
    remembering.add_argument(
        "--events", type=_positive, default=200_000, help="records to store, and three times them"
    )
    remembering.add_argument("--seconds", type=_seconds, default=5, help="of lists")
    remembering.add_argument("--executions", type=_positive, default=2000, help="with 140 events")
    remembering.add_argument("--long", type=_positive, default=100_000, help="events of one more")

    growing = _add(
        commands,
        "growth",
        lambda a: growth.run(a.events, a.sizes, a.loop, a.runs, a.seconds),
        growth,
    )
    growing.add_argument("--events", type=_positive, default=200_000, help="records to store")
    growing.add_argument(
        "--sizes", type=_sizes, default="0.1,1,10", help="millions of events stored before"
    )
    growing.add_argument("--loop", type=_positive, default=100_000, help="occurrences of a loop")
    growing.add_argument("--runs", type=_positive, default=3, help="of each variant")
    growing.add_argument("--seconds", type=_seconds, default=3, help="of one run of reads")

    comparing = _add(
        commands,
        "peers",
        lambda a: comparison.run(a.events, a.runs, a.kill, a.only),
        comparison,
    )
    comparing.add_argument("--events", type=_positive, default=200_000, help="records to store")
    comparing.add_argument("--runs", type=_positive, default=3, help="of each")
    comparing.add_argument(
        "--kill", action="store_true", help="as many runs more, each with one SIGKILL"
    )
    comparing.add_argument(
        *("--only",),
        action="append",
        default=[],
        choices=[peer.key for peer in PEERS],
        help="of the peers; may be given again",
    )
    return parser


def _add(commands: Any, name: str, run: _Run, module: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=module.__doc__)
    command.set_defaults(run=run)
    command.add_argument("--json", type=Path, metavar="FILE", help="where to keep all figures")
    return command


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 3600:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}")
    return seconds


def _tree(text: str) -> Path:
    path = Path(text).absolute()
    if not (path / ".venv" / "bin" / "python").exists():
        raise argparse.ArgumentTypeError(f"no checkout with a .venv: {text!r}")
    return path


def _sizes(text: str) -> list[float]:
    try:
        sizes = [float(each) for each in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not all(0 < size <= 1000 for size in sizes):
        raise argparse.ArgumentTypeError(f"no millions of events: {text!r}")
    return sizes


def _rates(text: str) -> list[int]:
    return [_positive(each) for each in text.split(",")]


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"not a whole number from 1 on: {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
