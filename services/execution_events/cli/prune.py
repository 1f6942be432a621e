"""`prune`: what nothing has changed for long leaves the database."""

import argparse
import asyncio
import re
from datetime import timedelta
from typing import Any

from execution_events.cli.extras import extra
from execution_events.cli.progress import Progress
from execution_events.cli.services import run_until_stopped
from execution_events.errors import ExecutionEventsError
from execution_events.settings import Settings

_AGE = re.compile(r"([1-9][0-9]{0,4})([dh])")


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    prune = commands.add_parser(
        "prune",
        help="remove executions that nothing has changed for long",
        description="Remove whole executions that nothing has changed for a time, by the "
        "database's clock and not by the events' own, in small transactions; and the watermarks of "
        "sources that sent nothing for 60 days. Run it as the owner of the database: the roles of "
        "the services may not delete. Ctrl-C stops it after the transaction in hand.",
    )
    prune.add_argument(
        "--older-than",
        type=_age,
        required=True,
        metavar="AGE",
        help="for how long nothing has changed: days or hours, such as 90d or 12h",
    )
    prune.add_argument(
        "--dead-letters",
        action="store_true",
        help="also remove dead letters that were retried or discarded so long ago",
    )
    prune.add_argument("--dry-run", action="store_true", help="only print what it would remove")
    prune.set_defaults(run=_prune)


def _age(text: str) -> timedelta:
    match = _AGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected days or hours like 90d or 12h, not {text!r}")
    number = int(match[1])
    return timedelta(days=number) if match[2] == "d" else timedelta(hours=number)


def _prune(arguments: argparse.Namespace, settings: Settings) -> int:
    return run_until_stopped(lambda stop: _remove(arguments, settings, stop))


async def _remove(arguments: argparse.Namespace, settings: Settings, stop: asyncio.Event) -> int:
    with extra("consumer"):
        from execution_events.store.connection import connect
        from execution_events.store.schema.migrate import require_current
        from execution_events.store.write import prune
    async with connect(settings.database.require_url(), "execution-events prune") as connection:
        await require_current(connection)
        before = await prune.time_before(connection, arguments.older_than)
        idle = await prune.time_before(connection, prune.SOURCE_RETENTION)
        kinds = [
            ("executions", prune.prune_executions, before),
            ("idle sources", prune.prune_sources, idle),
        ]
        if arguments.dead_letters:
            kinds.append(("closed dead letters", prune.prune_dead_letters, before))
        for kind, steps, moment in kinds:
            seen = removed = events = 0
            progress = Progress()
            try:
                async for step in steps(connection, moment, dry_run=arguments.dry_run):
                    seen += step.scanned
                    removed += step.deleted
                    events += step.events
                    progress.show(seen, f"{kind} seen, {removed} removed")
                    if stop.is_set():
                        raise ExecutionEventsError("interrupted; what was removed stays removed")
            finally:
                progress.end()
                verb = "would remove" if arguments.dry_run else "removed"
                having = f" with {events} events" if kind == "executions" else ""
                print(f"{verb}: {removed} {kind}{having}, unchanged since {moment:%F %TZ}")
    return 0
