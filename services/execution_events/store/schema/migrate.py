"""Migrations: numbered SQL files, applied in order, each in a transaction."""

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib.resources import files
from typing import NamedTuple

import asyncpg

from execution_events.errors import HaltError
from execution_events.store.connection import translated_errors
from execution_events.store.schema import roles
from execution_events.store.schema.lock import run_locked

_CREATE_SCHEMA_VERSION = """
CREATE SCHEMA IF NOT EXISTS execution_events;
CREATE TABLE IF NOT EXISTS execution_events.schema_version (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""

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
    """Apply pending migrations, set roles and privileges; return the migrations applied.

    Each role in `passwords` gets LOGIN and its password. Concurrent calls wait for each other.
    Raises `RetryableError` if other sessions hold a lock for a minute, and `MisconfiguredError`,
    with the SQL that an administrator has to run, if the login may not create a role or set a
    password.
    """

    async def apply_next() -> Migration | None:
        missing = await pending(connection)
        if not missing:
            return None
        await _apply(connection, missing[0])
        return missing[0]

    applied = []
    with translated_errors():
        await roles.set_roles(connection)
        # A concurrent call may create them at the same time.
        with suppress(asyncpg.UniqueViolationError):
            await connection.execute(_CREATE_SCHEMA_VERSION)
        while (migration := await run_locked(connection, apply_next)) is not None:
            applied.append(migration)
        await run_locked(connection, partial(roles.set_privileges, connection))
        await roles.set_passwords(connection, passwords)
    return applied


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
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
