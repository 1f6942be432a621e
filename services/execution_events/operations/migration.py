"""Migrations of the database, as the settings name it."""

from execution_events.settings import DatabaseSettings
from execution_events.store.connection import connect
from execution_events.store.schema.migrate import Migration, migrate, pending

_APPLICATION = "execution-events migrate"


async def migrate_database(database: DatabaseSettings) -> list[Migration]:
    """Apply the missing migrations and set the privileges; return the applied migrations."""
    passwords = {
        "execution_events_writer": database.writer_password,
        "execution_events_reader": database.reader_password,
        "execution_events_ops": database.ops_password,
    }
    url = database.require_url()
    async with connect(url, _APPLICATION, unlimited=True) as connection:
        return await migrate(
            connection, {role: password for role, password in passwords.items() if password}
        )


async def missing_migrations(database: DatabaseSettings) -> list[Migration]:
    """Return the missing migrations; change nothing."""
    async with connect(database.require_url(), _APPLICATION) as connection:
        return await pending(connection)
