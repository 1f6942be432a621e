"""The command line `execution-events`: its parser, errors and exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from execution_events.cli.commands import (
    consumer,
    dead_letters,
    dev,
    migrate,
    prune,
    publish,
    reader,
    spool,
    tail,
    topic,
)
from execution_events.cli.commands import settings as settings_command
from execution_events.cli.signals import sigterm_as_sigint
from execution_events.cli.streams import (
    OutputLostError,
    flush_output,
    note,
    prepare_streams,
    write_line,
)
from execution_events.errors import ExecutionEventsError, MisconfiguredError, SettingsError
from execution_events.logs import configure_logging
from execution_events.settings import PREFIX, load, misspelt, variable_of
from execution_events.text import one_line

_EPILOG = f"""\
Settings are environment variables {PREFIX}…; `execution-events settings` lists them.
Exit codes: 0 success, also of a service after SIGINT or SIGTERM; 1 failure, also an interrupted
command; 2 wrong usage or settings, also a login or a privilege that PostgreSQL refuses. A command
that changes something is judged by what it did, not by whether its output could be printed.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose help is lost with an error: argparse's own ignores a failure to print."""

    def print_help(self, file: Any = None) -> None:
        if file is None:
            write_line(self.format_help().removesuffix("\n"))
        else:
            super().print_help(file)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = _Parser(
        prog="execution-events",
        description="Exact counts of element lifecycle events, from Kafka to SQL and HTTP.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.set_defaults(environ=dict)
    root.add_argument("--version", action="version", version=version("execution-events"))
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (
        dev,
        consumer,
        reader,
        migrate,
        topic,
        publish,
        tail,
        spool,
        dead_letters,
        prune,
        settings_command,
    ):
        module.add_commands(commands)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    prepare_streams()
    try:
        with sigterm_as_sigint():
            return _run(arguments)
    except OutputLostError as error:
        return 1 if error.quiet else _fail(error, 1)
    except (SettingsError, MisconfiguredError) as error:
        return _fail(error, 2)
    except (ExecutionEventsError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt as interruption:
        return _fail(interruption, 1)
    except Exception as error:
        if os.environ.get(variable_of("log_level")) == "debug":
            raise
        note(f"unexpected {type(error).__name__}: {one_line(str(error))}")
        note(f"report it, with the traceback that {variable_of('log_level')}=debug shows")
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    try:
        parsed = parser().parse_args(arguments)
    except SystemExit:
        # argparse has printed help or an error.
        flush_output()
        raise
    for variable, nearest in misspelt(os.environ).items():
        remedy = f"did you mean {nearest}?" if nearest else "`execution-events settings` lists all"
        note(f"{one_line(variable)} is not a setting and has no effect: {remedy}")
    settings = load(parsed.environ(os.environ))
    configure_logging(settings.log.format, settings.log.level, sys.stderr)
    code: int = parsed.run(parsed, settings)
    flush_output()
    return code


def _fail(error: BaseException, code: int) -> int:
    note(str(error) or "interrupted")
    for text in getattr(error, "__notes__", ()):
        note(text)
    return code
