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
        description="Update the schema, the roles and their privileges. Run it as the owner of the "
        "database. What that role may not change, without CREATEROLE for example, is printed as "
        "SQL for an administrator of the server.",
    )
    migrate.add_argument(
        "--check",
        action="store_true",
        help="change nothing; list missing migrations, and roles and privileges that differ; exit "
        "1 if there are any",
    )
    migrate.set_defaults(run=_migrate)


def _migrate(arguments: argparse.Namespace, settings: Settings) -> int:
    return asyncio.run(_check(settings) if arguments.check else _apply(settings))


async def _check(settings: Settings) -> int:
    with extra("consumer"):
        from execution_events.operations.migration import check_database
    missing, (own, administrator) = await check_database(settings.database)
    lines = [f"missing: {migration.version:04} {migration.name}" for migration in missing] + own
    for line in lines:
        print(line)
    print("run `execution-events migrate`" if lines else "up to date")
    _print_script(administrator)
    return 1 if lines else 0


async def _apply(settings: Settings) -> int:
    with extra("consumer"):
        from execution_events.operations.migration import migrate_database
    applied, administrator = await migrate_database(settings.database)
    for migration in applied:
        print(f"applied: {migration.version:04} {migration.name}")
    print("up to date")
    _print_script(administrator)
    return 0


def _print_script(statements: list[str]) -> None:
    """Print SQL that the owner of the database may not run."""
    if statements:
        print("recommended, by an administrator of the server, in this database:")
        for statement in statements:
            print(f"    {statement};")
