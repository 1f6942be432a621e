"""Migrations of the database, as the settings name it."""

from typing import NamedTuple

from execution_events.settings import DatabaseSettings
from execution_events.store.connection import connect, translated_errors
from execution_events.store.schema import roles
from execution_events.store.schema.migrate import Migration, migrate, pending

_APPLICATION = "execution-events migrate"


class Outcome(NamedTuple):
    """The migrations applied, and SQL that an administrator of the server has to run."""

    applied: list[Migration]
    administrator: list[str]


class Check(NamedTuple):
    """The missing migrations; without any, the differences of roles and privileges."""

    missing: list[Migration]
    differences: roles.Differences


async def migrate_database(database: DatabaseSettings) -> Outcome:
    """Apply the missing migrations and set roles, privileges and passwords."""
    passwords = {
        "execution_events_writer": database.writer_password,
        "execution_events_reader": database.reader_password,
        "execution_events_ops": database.ops_password,
    }
    url = database.require_url()
    async with connect(url, _APPLICATION, unlimited=True) as connection:
        applied = await migrate(
            connection, {role: password for role, password in passwords.items() if password}
        )
        with translated_errors():
            return Outcome(applied, await roles.left_for_administrator(connection))


async def check_database(database: DatabaseSettings) -> Check:
    """Compare the database with what `migrate_database` makes of it; change nothing."""
    async with connect(database.require_url(), _APPLICATION) as connection:
        missing = await pending(connection)
        if missing:
            return Check(missing, roles.Differences([], []))
        with translated_errors():
            return Check([], await roles.differences(connection))
