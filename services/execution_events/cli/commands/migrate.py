"""`migrate`: the schema and the roles' privileges."""

import argparse
import asyncio
from typing import Any

from execution_events.cli.extras import extra
from execution_events.cli.report import Report
from execution_events.cli.streams import write_line
from execution_events.cli.waiting import add_wait, until_reached
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
    add_wait(migrate, "PostgreSQL")
    migrate.set_defaults(run=_migrate)


def _migrate(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.check:
        return asyncio.run(_check(settings, arguments.wait))
    with Report() as report:
        asyncio.run(_apply(settings, arguments.wait, report))
    return 0


async def _check(settings: Settings, wait: float) -> int:
    with extra("consumer"):
        from execution_events.operations.migration import check_database
    missing, (own, administrator) = await until_reached(
        lambda: check_database(settings.database), wait
    )
    lines = [f"missing: {migration.version:04} {migration.name}" for migration in missing] + own
    lines.append("run `execution-events migrate`" if lines else "up to date")
    for line in (*lines, *_script(administrator)):
        write_line(line)
    return 1 if len(lines) > 1 else 0


async def _apply(settings: Settings, wait: float, report: Report) -> None:
    with extra("consumer"):
        from execution_events.operations.migration import migrate_database
    report.remedy = "each migration is applied whole or not at all; repeat the command for the rest"
    applied, administrator = await until_reached(lambda: migrate_database(settings.database), wait)
    lines = [f"applied: {migration.version:04} {migration.name}" for migration in applied]
    report.done = "\n".join([*lines, "up to date", *_script(administrator)])


def _script(statements: list[str]) -> list[str]:
    """Return the lines of SQL that the owner of the database may not run."""
    if not statements:
        return []
    heading = "recommended, by an administrator of the server, in this database:"
    return [heading, *(f"    {statement};" for statement in statements)]
