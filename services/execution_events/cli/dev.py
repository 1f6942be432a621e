"""`dev`: the options, and where the data lives."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from execution_events.cli.extras import extra
from execution_events.cli.numbers import port
from execution_events.cli.services import run_until_stopped
from execution_events.settings import Settings


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    dev = commands.add_parser(
        "dev",
        help="run everything on this machine: Kafka, PostgreSQL, consumer, reader, demo workers",
        description="Run everything on this machine, with the real Apache Kafka and PostgreSQL; "
        "the first start downloads Kafka (45 MB). When all is ready, the addresses are in "
        "endpoints.json in the data directory. Ctrl-C stops all in order; the data stays.",
    )
    dev.add_argument(
        "--data-dir",
        type=Path,
        default=_data_directory(),
        metavar="DIR",
        help="where everything is kept (default: %(default)s)",
    )
    dev.add_argument(
        "--reader-port",
        type=port,
        metavar="PORT",
        help="the reader's port; 0: any (default: the last one, or 8080, or any where it is taken)",
    )
    dev.add_argument("--no-demo", action="store_true", help="without the demo workers")
    dev.add_argument(
        "--infra-only",
        action="store_true",
        help="Kafka and PostgreSQL, migrated, with the topic, and nothing else",
    )
    dev.set_defaults(run=_dev)


def _dev(arguments: argparse.Namespace, settings: Settings) -> int:
    with extra("embedded"):
        from execution_events.dev.stack import DevOptions, run_stack
        from execution_events.embedded import cache_directory
    options = DevOptions(
        data_dir=arguments.data_dir,
        cache_dir=cache_directory(os.environ),
        reader_port=arguments.reader_port,
        demo=not (arguments.no_demo or arguments.infra_only),
        infra_only=arguments.infra_only,
        colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ,
    )
    return run_until_stopped(lambda stop: run_stack(settings, options, stop))


def _data_directory() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(base, "execution-events")
