"""`migrate`: the schema and the roles' privileges."""

import argparse
import asyncio
from typing import Any

from execution_events.cli.extras import extra
from execution_events.settings import Settings


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    migrate = commands.add_parser(
        "migrate",
        help="update the database's schema and roles",
        description="Update the schema and the roles' privileges. Run it as the owner of the "
        "database, a role with CREATEROLE.",
    )
    migrate.add_argument(
        "--check",
        action="store_true",
        help="change nothing; list missing migrations and exit 1 if there are any",
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
