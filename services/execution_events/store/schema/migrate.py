"""Migrations: numbered SQL files, applied in order, each in a transaction."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

import asyncpg

from execution_events.errors import HaltError
from execution_events.store.connection import translated_errors

# An arbitrary constant: concurrent migrations of one database wait for each other.
_ADVISORY_LOCK = 0x65_78_65_63_65_76

_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")


class Migration(NamedTuple):
    """One version of the schema."""

    version: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """Return all migrations in order; versions count from 1 without gaps."""
    migrations = []
    for file in (files(__package__) / "migrations").iterdir():
        match = _FILE_NAME.fullmatch(file.name)
        if match:
            migrations.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(migrations)


async def pending(connection: asyncpg.Connection) -> list[Migration]:
    """Return the migrations not yet applied to the database.

    Raises `HaltError` if its schema is newer than this program.
    """
    known = migrations()
    version = await _version(connection)
    if version > known[-1].version:
        raise HaltError(
            f"the database has schema version {version}, this program supports up to "
            f"{known[-1].version}: upgrade execution-events"
        )
    return [migration for migration in known if migration.version > version]


async def require_current(connection: asyncpg.Connection) -> None:
    """Raise `HaltError`, with the command to run, unless the schema is current."""
    missing = await pending(connection)
    if missing:
        raise HaltError(
            f"{len(missing)} of {missing[-1].version} migrations are not applied to the database: "
            "run `execution-events migrate`"
        )


async def migrate(connection: asyncpg.Connection, passwords: Mapping[str, str]) -> list[Migration]:
    """Apply pending migrations and privileges; return the migrations applied.

    Each role in `passwords` gets LOGIN and its password. Concurrent calls wait for each other.
    """
    with translated_errors():
        await connection.execute("SELECT pg_advisory_lock($1)", _ADVISORY_LOCK)
        try:
            applied = await pending(connection)
            for migration in applied:
                async with connection.transaction():
                    await _apply(connection, migration)
            async with connection.transaction():
                await connection.execute((files(__package__) / "privileges.sql").read_text())
                for role, password in passwords.items():
                    await connection.execute(
                        await connection.fetchval(
                            "SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', $1::text, $2::text)",
                            role,
                            password,
                        )
                    )
        finally:
            if not connection.is_closed():
                await connection.execute("SELECT pg_advisory_unlock($1)", _ADVISORY_LOCK)
    return applied


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    if migration.version == 1:
        await connection.execute(
            """
            CREATE SCHEMA IF NOT EXISTS execution_events;
            CREATE TABLE execution_events.schema_version (
                version    integer PRIMARY KEY,
                name       text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now()
            )
            """
        )
    await connection.execute("SET LOCAL search_path = execution_events")
    await connection.execute(migration.sql)
    await connection.execute(
        "INSERT INTO execution_events.schema_version (version, name) VALUES ($1, $2)",
        migration.version,
        migration.name,
    )


async def _version(connection: asyncpg.Connection) -> int:
    with translated_errors():
        if not await connection.fetchval(
            "SELECT to_regclass('execution_events.schema_version') IS NOT NULL"
        ):
            return 0
        version: int = await connection.fetchval(
            "SELECT coalesce(max(version), 0) FROM execution_events.schema_version"
        )
        return version
