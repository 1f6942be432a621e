"""`dev`: everything on this machine."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from execution_events.cli.arguments import port
from execution_events.cli.extras import extra
from execution_events.cli.signals import run_until_stopped
from execution_events.errors import SettingsError
from execution_events.settings import Settings, variable_of


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    dev = commands.add_parser(
        "dev",
        help="run everything on this machine: Kafka, PostgreSQL, consumer, reader, demo workers",
        description="Run Apache Kafka, PostgreSQL, the consumer, the reader and demo workers on "
        "this machine. The first start downloads Kafka (45 MB). Once everything is ready, "
        "endpoints.json in the data directory holds the addresses. Ctrl-C stops everything; the "
        "data stays.",
    )
    dev.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="data directory (default: execution-events in XDG_DATA_HOME, else in ~/.local/share)",
    )
    dev.add_argument(
        "--reader-port",
        type=port,
        metavar="PORT",
        help="reader port; 0 picks a free one (default: the port of the last run, else 8080, else "
        "a free one)",
    )
    dev.add_argument("--no-demo", action="store_true", help="start no demo workers")
    dev.add_argument(
        "--infra-only",
        action="store_true",
        help="start Kafka and PostgreSQL only, with the topic and the schema",
    )
    dev.set_defaults(run=_dev, environ=_own_settings)


def _own_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that `dev` takes; the others configure other installations."""
    taken = map(variable_of, ("cache_dir", "group", "log_format", "log_level"))
    return {name: environ[name] for name in taken if name in environ}


def _dev(arguments: argparse.Namespace, settings: Settings) -> int:
    with extra("embedded"):
        from execution_events.dev.stack import DevOptions, run_stack
    options = DevOptions(
        data_dir=arguments.data_dir or _data_directory(),
        reader_port=arguments.reader_port,
        demo=not (arguments.no_demo or arguments.infra_only),
        infra_only=arguments.infra_only,
        colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ,
    )
    # Read by asyncpg in this process. Proxies stay, for the download.
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    if not _has_home():
        # Libraries look for their caches there.
        os.environ["HOME"] = str(options.data_dir.absolute())
    return run_until_stopped(lambda stop: run_stack(settings, options, stop))


def _data_directory() -> Path:
    if not (base := os.environ.get("XDG_DATA_HOME")) and not _has_home():
        raise SettingsError("this user has no home directory: give a data directory by --data-dir")
    return Path(base or Path.home() / ".local/share", "execution-events")


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True
