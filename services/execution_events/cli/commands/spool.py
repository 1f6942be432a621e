"""`spool`: list and send the events in workers' spools."""

import argparse
import asyncio
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from execution_events.cli.arguments import seconds
from execution_events.cli.progress import Progress
from execution_events.cli.report import Report
from execution_events.cli.streams import write_line
from execution_events.errors import ExecutionEventsError, SettingsError
from execution_events.settings import Settings, variable_of

if TYPE_CHECKING:
    from execution_events.publisher.spool.spool import Spool

_ACCEPT = "execution-events spool drain --accept-duplicates"


def add_commands(commands: Any) -> None:
    """Add the commands to the command line."""
    spool = commands.add_parser("spool", help="list or send events in workers' spools")
    subcommands = spool.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = subcommands.add_parser(
        "list",
        help="list the spools of a directory",
        description="List the spools of a directory with their pending events, those held because "
        "they were attempted more than 30 days ago, those that Kafka refused, and the errors that "
        "block partitions. A spool in use belongs to a running process.",
    )
    listing.add_argument("--json", action="store_true", help="print one JSON object per line")
    listing.set_defaults(run=_list)
    draining = subcommands.add_parser(
        "drain",
        help="send the events of ended processes",
        description="Send the events of every spool that no process uses; each is counted once. "
        "Ctrl-C stops it; unsent events stay in the spools. Exits 1 if events are left in a spool "
        "that no process uses.",
    )
    draining.add_argument(
        "--accept-duplicates",
        action="store_true",
        help="also send held and refused events, and choose a new partition for events whose "
        "partition no longer exists; events counted before count again",
    )
    draining.add_argument(
        "--timeout",
        type=seconds,
        default=60,
        metavar="SECONDS",
        help="seconds without an acknowledgement from Kafka until it stops (default: %(default)s)",
    )
    draining.set_defaults(run=_drain)
    for command in (listing, draining):
        command.add_argument(
            "directory",
            nargs="?",
            type=Path,
            metavar="DIRECTORY",
            help=f"directory of the spools (default: {variable_of('spool_dir')})",
        )


def _directory(arguments: argparse.Namespace, settings: Settings) -> Path:
    directory: Path | None = arguments.directory
    if directory is None:
        if settings.publisher.spool_dir is None:
            raise SettingsError(f"{variable_of('spool_dir')} is not set: set it, or give DIRECTORY")
        directory = Path(settings.publisher.spool_dir)
    if not directory.is_dir():
        raise SettingsError(
            f"{directory}: no such directory: correct {variable_of('spool_dir')}, or give DIRECTORY"
        )
    return directory


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    from execution_events.cli.spool_format import json_line, line
    from execution_events.publisher.spool.directory import list_spools

    listed = list_spools(_directory(arguments, settings))
    for info in listed:
        write_line(json_line(info) if arguments.json else line(info))
    if not listed and not arguments.json:
        write_line("no spools")
    return 0


def _drain(arguments: argparse.Namespace, settings: Settings) -> int:
    directory = _directory(arguments, settings)
    with Report(prints_done=False) as report:
        report.remedy = "unsent events stay in the spools; repeat the command for the rest"
        return asyncio.run(_drain_all(settings, directory, arguments, report))


async def _drain_all(
    settings: Settings, directory: Path, arguments: argparse.Namespace, report: Report
) -> int:
    from execution_events.cli.spool_format import error_lines
    from execution_events.publisher.spool.directory import adopt, spools

    code = 0
    aside = sent = 0
    for path in spools(directory):
        try:
            spool = adopt(path, settings.publisher.spool_max_bytes)
            if spool is None:
                report.line(f"{path}: skipped: in use by a running process")
                continue
            with spool:
                if arguments.accept_duplicates:
                    spool.accept_duplicates()
                before = spool.pending + spool.refused
                try:
                    counts = await _send(settings, spool, arguments)
                finally:
                    sent += before - spool.pending - spool.refused
                    report.done = f"sent: {sent} events"
                report.line(f"{path}: {counts}")
                for line in error_lines(spool.errors) if spool.pending else ():
                    report.line(line)
        except SettingsError:
            raise
        except ExecutionEventsError as error:
            # The other spools may be intact.
            report.line(f"{path}: {str(error).removeprefix(f'{path}: ')}")
            code = 1
            continue
        if spool.pending or spool.held or spool.refused:
            code = 1
        aside += spool.held + spool.refused
    if aside:
        command = f"{_ACCEPT} {quote(str(directory))}"
        report.line(f"to send held and refused events as well (they may count again): {command}")
    return code


async def _send(settings: Settings, spool: "Spool", arguments: argparse.Namespace) -> str:
    """Send the pending records and return the resulting counts as text."""
    from execution_events.publisher.delivery.drain import drain

    total, refused = spool.pending, spool.refused
    if total:
        progress = Progress(total)
        try:
            await drain(
                settings.kafka,
                settings.publisher,
                spool,
                timeout=arguments.timeout,
                progress=lambda sent: progress.show(sent, "sent"),
                reassign_partitions=arguments.accept_duplicates,
            )
        finally:
            progress.end()
    # A damaged spool is replaced while it is drained, and keeps its pending records.
    counts = {"pending": spool.pending, "held": spool.held, "refused": spool.refused}
    sent = total - spool.pending - (spool.refused - refused)
    return ", ".join(
        [f"sent {sent}", *(f"{what} {number}" for what, number in counts.items() if number)]
    )
