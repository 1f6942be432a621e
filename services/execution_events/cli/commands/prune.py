"""`prune`: delete executions unchanged for longer than an age."""

import argparse
import asyncio
from typing import Any

from execution_events.cli.arguments import age
from execution_events.cli.extras import extra
from execution_events.cli.progress import Progress
from execution_events.cli.signals import run_until_stopped
from execution_events.errors import ExecutionEventsError
from execution_events.settings import Settings


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    prune = commands.add_parser(
        "prune",
        help="delete executions unchanged for longer than AGE",
        description="Delete whole executions unchanged for longer than AGE, by the time of their "
        "last change in the database, not by event times; and the watermarks of sources that sent "
        "nothing for 60 days. Rows are deleted in small transactions. Run it as the owner of the "
        "database: the services' roles cannot delete. Ctrl-C stops it after the current "
        "transaction.",
    )
    prune.add_argument(
        "--older-than",
        type=age,
        required=True,
        metavar="AGE",
        help="age in days or hours, such as 90d or 12h",
    )
    prune.add_argument(
        "--dead-letters",
        action="store_true",
        help="also delete dead letters retried or discarded longer than AGE ago",
    )
    prune.add_argument("--dry-run", action="store_true", help="delete nothing; print the numbers")
    prune.set_defaults(run=_prune)


def _prune(arguments: argparse.Namespace, settings: Settings) -> int:
    return run_until_stopped(lambda stop: _remove(arguments, settings, stop))


async def _remove(arguments: argparse.Namespace, settings: Settings, stop: asyncio.Event) -> int:
    with extra("consumer"):
        from execution_events.store.connection import connect
        from execution_events.store.schema.migrate import require_compatible
        from execution_events.store.write import prune
    async with connect(settings.database.require_url(), "execution-events prune") as connection:
        await require_compatible(connection)
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
                    progress.show(seen, f"{kind} checked, {removed} deleted")
                    if stop.is_set():
                        raise ExecutionEventsError("interrupted; deleted rows stay deleted")
            finally:
                progress.end()
                verb = "would delete" if arguments.dry_run else "deleted"
                having = f" with {events} events" if kind == "executions" else ""
                print(f"{verb}: {removed} {kind}{having}, unchanged since {moment:%F %TZ}")
    return 0
