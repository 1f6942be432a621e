"""The command line `execution-events`: its parser, errors and exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from execution_events.cli.commands import (
    consumer,
    dead_letters,
    dev,
    migrate,
    prune,
    publish,
    reader,
    spool,
    topic,
)
from execution_events.cli.commands import settings as settings_command
from execution_events.errors import ExecutionEventsError, MisconfiguredError, SettingsError
from execution_events.logs import configure_logging
from execution_events.settings import PREFIX, load

_EPILOG = f"""\
Settings are environment variables {PREFIX}…; `execution-events settings` lists them.
Exit codes: 0 success, also after SIGINT or SIGTERM; 1 failure; 2 wrong usage or settings,
also a login or a privilege that PostgreSQL refuses.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="execution-events",
        description="Exact counts of element lifecycle events, from Kafka to SQL and HTTP.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=version("execution-events"))
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (
        dev,
        consumer,
        reader,
        migrate,
        topic,
        publish,
        spool,
        dead_letters,
        prune,
        settings_command,
    ):
        module.add_commands(commands)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parsed = parser().parse_args(arguments)
    try:
        settings = load(os.environ)
        configure_logging(settings.log.format, settings.log.level, sys.stderr)
        code: int = parsed.run(parsed, settings)
        sys.stdout.flush()
    except (SettingsError, MisconfiguredError) as error:
        return _fail(error, 2)
    except ExecutionEventsError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except BrokenPipeError:
        # As in `… | head -1`. Python must not flush into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _fail(error: object, code: int) -> int:
    print(f"execution-events: {error}", file=sys.stderr)
    return code
