"""`migrate`: the database's schema and privileges up to date."""

import argparse
import asyncio
from typing import Any

from execution_events.cli.extras import extra
from execution_events.settings import Settings


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    migrate = commands.add_parser(
        "migrate",
        help="bring the database's schema up to date",
        description="Bring the schema and the privileges of the roles up to date. Run it as the "
        "owner of the database, who may create roles.",
    )
    migrate.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 when it is not up to date"
    )
    migrate.set_defaults(run=_migrate)


def _migrate(arguments: argparse.Namespace, settings: Settings) -> int:
    return asyncio.run(_check(settings) if arguments.check else _apply(settings))


async def _check(settings: Settings) -> int:
    with extra("consumer"):
        from execution_events.operations.migration import missing_migrations
    missing = await missing_migrations(settings.database)
    for migration in missing:
        print(f"missing: {migration.version:04} {migration.name}")
    if missing:
        print("run `execution-events migrate`")
        return 1
    print("up to date")
    return 0


async def _apply(settings: Settings) -> int:
    with extra("consumer"):
        from execution_events.operations.migration import migrate_database
    for migration in await migrate_database(settings.database):
        print(f"applied: {migration.version:04} {migration.name}")
    print("up to date")
    return 0
