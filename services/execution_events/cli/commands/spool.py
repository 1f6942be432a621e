"""`spool`: list and send the events in workers' spools."""

import argparse
import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

import msgspec

from execution_events.cli.arguments import seconds
from execution_events.cli.progress import Progress
from execution_events.errors import ExecutionEventsError, SettingsError
from execution_events.publisher.delivery.drain import drain
from execution_events.publisher.delivery.sender import EVERY_PARTITION
from execution_events.publisher.spool.directory import SpoolInfo, adopt, list_spools, spools
from execution_events.publisher.spool.spool import Spool
from execution_events.settings import Settings, variable_of

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
        raise ExecutionEventsError(f"{directory}: no such directory")
    return directory


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    listed = list_spools(_directory(arguments, settings))
    for info in listed:
        print(_json_line(info) if arguments.json else _line(info))
    if not listed and not arguments.json:
        print("no spools")
    return 0


def _state(info: SpoolInfo) -> str:
    if info.set_aside:
        return "set_aside"
    return "in_use" if info.owned else "left_behind"


def _json_line(info: SpoolInfo) -> str:
    found = info.summary
    return msgspec.json.encode(
        {
            "path": str(info.path),
            "state": _state(info),
            "problem": info.problem,
            "source": found and found.source,
            "pending": found and found.pending,
            "held": found and found.held,
            "refused": found and found.refused,
            "bytes": found and found.bytes,
            "oldest": found and _moment(found.oldest),
            "blocked": found
            and [
                {"partitions": partitions, "error": error}
                for error, partitions in _blocked(found.errors)
            ],
        }
    ).decode()


def _line(info: SpoolInfo) -> str:
    start = f"{info.path}  {_state(info).replace('_', ' ')}"
    if info.summary is None:
        return f"{start}  {info.problem}"
    source, pending, held, refused, size, oldest, errors = info.summary
    since = "" if oldest is None else f"  oldest {_moment(oldest)}"
    counts = f"pending {pending}  held {held}  refused {refused}  bytes {size}"
    return "\n".join([f"{start}  {counts}{since}  {source}", *_error_lines(errors)])


def _blocked(errors: Mapping[int, str]) -> list[tuple[str, list[int]]]:
    """Return each error with the partitions it blocks, or once with none if it blocks all."""
    if (error := errors.get(EVERY_PARTITION)) is not None:
        return [(error, [])]
    blocked: dict[str, list[int]] = {}
    for partition, error in sorted(errors.items()):
        blocked.setdefault(error, []).append(partition)
    return list(blocked.items())


def _error_lines(errors: Mapping[int, str]) -> list[str]:
    lines = []
    for error, partitions in _blocked(errors):
        named = "partitions" if len(partitions) > 1 else "partition"
        where = f" in {named} {', '.join(map(str, partitions))}" if partitions else ""
        lines.append(f"  blocked{where}: {error}")
    return lines


def _moment(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return f"{datetime.fromtimestamp(milliseconds // 1000, UTC):%FT%TZ}"


def _drain(arguments: argparse.Namespace, settings: Settings) -> int:
    directory = _directory(arguments, settings)
    return asyncio.run(
        _drain_all(
            settings, directory, arguments.timeout, accept_duplicates=arguments.accept_duplicates
        )
    )


async def _drain_all(
    settings: Settings, directory: Path, timeout: float, *, accept_duplicates: bool
) -> int:
    code = 0
    aside = 0
    for path in spools(directory):
        try:
            spool = adopt(path, settings.publisher.spool_max_bytes)
            if spool is None:
                print(f"{path}: skipped: in use by a running process")
                continue
            with spool:
                if accept_duplicates:
                    spool.accept_duplicates()
                print(f"{path}: {await _send(settings, spool, timeout, accept_duplicates)}")
                for line in _error_lines(spool.errors) if spool.pending else ():
                    print(line)
        except SettingsError:
            raise
        except ExecutionEventsError as error:
            # The other spools may be intact.
            print(f"{path}: {str(error).removeprefix(f'{path}: ')}")
            code = 1
            continue
        if spool.pending or spool.held or spool.refused:
            code = 1
        aside += spool.held + spool.refused
    if aside:
        command = f"{_ACCEPT} {quote(str(directory))}"
        print(f"to send held and refused events as well (they may count again): {command}")
    return code


async def _send(settings: Settings, spool: Spool, timeout: float, accept_duplicates: bool) -> str:
    """Send the pending records and return the resulting counts as text."""
    total, refused = spool.pending, spool.refused
    if total:
        progress = Progress(total)
        try:
            await drain(
                settings.kafka,
                settings.publisher,
                spool,
                timeout=timeout,
                progress=lambda sent: progress.show(sent, "sent"),
                reassign_partitions=accept_duplicates,
            )
        finally:
            progress.end()
    # A damaged spool is replaced while it is drained, and keeps its pending records.
    counts = {"pending": spool.pending, "held": spool.held, "refused": spool.refused}
    sent = total - spool.pending - (spool.refused - refused)
    return ", ".join(
        [f"sent {sent}", *(f"{what} {number}" for what, number in counts.items() if number)]
    )
