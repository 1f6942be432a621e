"""Migrations: numbered SQL files, applied in order, each in a transaction."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from importlib.resources import files
from typing import NamedTuple

import asyncpg

from execution_events.errors import HaltError
from execution_events.store.connection import fetch_one, translated_errors
from execution_events.store.schema import roles
from execution_events.store.schema.lock import run_locked
from execution_events.store.sql import load_queries

_SQL = load_queries("schema")

_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")
_COMPATIBLE_FROM = re.compile(r"^-- compatible_from: (\S+)$", re.MULTILINE)
_RELEASE = re.compile(r"\d+(\.\d+)*")


class Migration(NamedTuple):
    """One version of the schema.

    `compatible_from` is the oldest version of execution-events that may run on it.
    """

    version: int
    name: str
    sql: str
    compatible_from: str

    @property
    def digest(self) -> str:
        """The SHA-256 of the SQL."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


class UnreleasedSchemaError(HaltError):
    """Begin again with an empty database: the schema is of a version that was never released."""

    def __init__(self) -> None:
        super().__init__(
            "the database's schema was never released and cannot be updated: create an empty"
            " database and run `execution-events migrate`; the consumer then stores the topic"
            " from its beginning"
        )


@cache
def program_version() -> str:
    """Return the version of this installation of execution-events."""
    return version("execution-events")


def migrations() -> list[Migration]:
    """Return all migrations in order; versions count from 1 without gaps.

    A line `-- compatible_from: <version>` excludes older versions of execution-events; without it,
    those that could run on the previous schema can run on this one.
    """
    found = []
    for file in (files(__package__) / "migrations").iterdir():
        match = _FILE_NAME.fullmatch(file.name)
        if match:
            found.append((int(match[1]), match[2], file.read_text(encoding="utf-8")))
    ordered: list[Migration] = []
    for number, name, sql in sorted(found):
        line = _COMPATIBLE_FROM.search(sql)
        compatible_from = line[1] if line else ordered[-1].compatible_from
        ordered.append(Migration(number, name, sql, compatible_from))
    return ordered


async def pending(connection: asyncpg.Connection) -> list[Migration]:
    """Return the migrations not yet applied to the database.

    Raises `HaltError` if its schema is newer than this program.
    """
    known = migrations()
    applied = await _applied(connection, known)
    if len(applied) > len(known):
        raise HaltError(
            f"the database has schema version {applied[-1]['version']}, this program supports up"
            f" to {known[-1].version}: upgrade execution-events"
        )
    return known[len(applied) :]


async def require_compatible(connection: asyncpg.Connection) -> None:
    """Raise `HaltError`, with the command to run, unless this program can use the schema.

    It can if all its migrations are applied, also if newer ones are that are compatible with it.
    """
    known = migrations()
    applied = await _applied(connection, known)
    if len(applied) < len(known):
        raise HaltError(
            f"{len(known) - len(applied)} of {len(known)} migrations are not applied to the"
            " database: run `execution-events migrate`"
        )
    require_version(applied[-1]["compatible_from"])


def require_version(compatible_from: str) -> None:
    """Raise `HaltError` if this program is older than `compatible_from`."""
    if _release(program_version()) < _release(compatible_from):
        raise HaltError(
            f"the database's schema requires execution-events {compatible_from} or newer, this is"
            f" {program_version()}: upgrade execution-events, with pip by"
            f" `pip install 'execution-events>={compatible_from}'`"
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
        # A database of an unreleased version is left as it is.
        await pending(connection)
        await roles.set_roles(connection)
        # A concurrent call may create them at the same time.
        with suppress(asyncpg.UniqueViolationError):
            await connection.execute(_SQL["create_schema_version"])
        while (migration := await run_locked(connection, apply_next)) is not None:
            applied.append(migration)
        await run_locked(connection, partial(roles.set_privileges, connection))
        await roles.set_passwords(connection, passwords)
    return applied


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    if migration.version > 1 and _COMPATIBLE_FROM.search(migration.sql):
        await connection.execute(_SQL["lock_batches"])
    await connection.execute(migration.sql)
    await connection.execute(
        _SQL["insert_schema_version"],
        migration.version,
        migration.name,
        migration.digest,
        migration.compatible_from,
    )


async def _applied(
    connection: asyncpg.Connection, known: Sequence[Migration]
) -> list[asyncpg.Record]:
    """Return the applied migrations in order.

    Raises `UnreleasedSchemaError` if one of them is not the known one of its version.
    """
    with translated_errors():
        state = await fetch_one(connection, _SQL["schema_version_state"])
        if not state["exists"]:
            return []
        if not state["is_released"]:
            raise UnreleasedSchemaError
        applied = await connection.fetch(_SQL["applied_migrations"])
    if any(row["digest"] != one.digest for row, one in zip(applied, known, strict=False)):
        raise UnreleasedSchemaError
    return applied


def _release(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, without the suffix of a pre-release."""
    match = _RELEASE.match(text)
    if match is None:
        raise ValueError(f"not a version: {text}")
    return tuple(int(number) for number in match[0].split("."))
