"""The benchmarks. Each is one run on one machine, with the references that it is compared with.

    python -m tests.benchmarks publish [--events N] [--runs N] [--json FILE]
    python -m tests.benchmarks outage [--seconds S] [--rate N] [--json FILE]
    python -m tests.benchmarks import [--runs N] [--json FILE]

A bar that is missed is printed; the exit code is 1 only where an event was lost or misplaced.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.benchmarks import imports, outage, publish, report
from tests.benchmarks.report import Report

_Run = Callable[[argparse.Namespace], Coroutine[Any, Any, Report]]


def main() -> int:
    """Parse, run, print, and give the exit code."""
    arguments = _parser().parse_args()
    run: _Run = arguments.run
    # The load of the machine without the benchmark's own.
    machine = report.machine()
    done = asyncio.run(run(arguments))
    print(report.heading(machine), done.text(), sep="\n\n")
    if arguments.json is not None:
        arguments.json.write_text(done.json(machine) + "\n")
    return 1 if done.broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    publishing = _add(commands, "publish", lambda a: publish.run(a.events, a.runs), publish)
    publishing.add_argument("--events", type=_positive, default=50_000, help="of one run")
    publishing.add_argument("--runs", type=_positive, default=5, help="of each variant")

    away = _add(commands, "outage", lambda a: outage.run(a.seconds, a.rate), outage)
    away.add_argument("--seconds", type=_positive, default=60, help="that the broker is away")
    away.add_argument("--rate", type=_positive, default=1000, help="events a second")

    importing = _add(commands, "import", lambda a: imports.run(a.runs), imports)
    importing.add_argument("--runs", type=_positive, default=15, help="of each import")
    return parser


def _add(commands: Any, name: str, run: _Run, module: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=module.__doc__)
    command.set_defaults(run=run)
    command.add_argument("--json", type=Path, metavar="FILE", help="where to keep all figures")
    return command


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"not a whole number from 1 on: {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
