"""Databases: empty, migrated, and cloned from a migrated template."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from execution_events.store.connection import connect
from execution_events.store.schema.migrate import migrate
from execution_events.store.schema.provision import provision_database
from tests.faults.proxy import Proxy
from tests.support import states

OWNER = "execution_events_owner"
PASSWORD = secrets.token_urlsafe(12)
SERVICE_ROLES = ("execution_events_writer", "execution_events_reader", "execution_events_ops")


class Database(NamedTuple):
    """The address of one database for each role."""

    administrator: str
    owner: str
    writer: str
    reader: str
    ops: str


def urls(administrator_url: str, database: str) -> Database:
    """Return the addresses of `database` on the administrator's server."""
    return Database(
        _url(administrator_url, database),
        *(
            _url(administrator_url, database, f"execution_events_{role}")
            for role in ("owner", "writer", "reader", "ops")
        ),
    )


async def provision(administrator_url: str, kind: str) -> str:
    """Create a database that has its owner and no schema; return its name."""
    name = _name(kind)
    await provision_database(administrator_url, name, OWNER, PASSWORD)
    return name


async def clone(
    administrator_url: str, template_name: str, kind: str = "test", tablespace: str = "pg_default"
) -> str:
    """Copy a database that has no connections; return the name of the copy."""
    name = _name(kind)
    async with administrator(administrator_url) as connection:
        await connection.execute(
            f'CREATE DATABASE "{name}" TEMPLATE "{template_name}" OWNER "{OWNER}"'
            f" TABLESPACE {tablespace}"
        )
    return name


@asynccontextmanager
async def template(administrator_url: str) -> AsyncIterator[str]:
    """The name of a migrated database without connections."""
    name = await provision(administrator_url, "template")
    await migrate_as_owner(urls(administrator_url, name))
    try:
        yield name
    finally:
        await drop(administrator_url, name)


@asynccontextmanager
async def cloned(
    administrator_url: str, template_name: str, *, compare: bool = True
) -> AsyncIterator[Database]:
    """A copy of the template, dropped at the end.

    With `compare`, its states must then equal a recomputation from its events.
    """
    name = await clone(administrator_url, template_name)
    database = urls(administrator_url, name)
    # A copy has the schema of its template, not the privileges on the database itself.
    await migrate_as_owner(database)
    try:
        yield database
        if compare:
            async with administrator(database.administrator) as connection:
                differences = await states.differences(connection)
                assert not differences, "\n".join(differences)
    finally:
        await drop(administrator_url, name)


@asynccontextmanager
async def empty(administrator_url: str) -> AsyncIterator[Database]:
    """A database with its owner and no schema, dropped at the end."""
    name = await provision(administrator_url, "empty")
    try:
        yield urls(administrator_url, name)
    finally:
        await drop(administrator_url, name)


async def migrate_as_owner(database: Database) -> list[str]:
    """Migrate and set the roles' passwords; return the names of the applied migrations."""
    async with connect(database.owner, "tests", unlimited=True) as connection:
        applied = await migrate(connection, dict.fromkeys(SERVICE_ROLES, PASSWORD))
    return [migration.name for migration in applied]


@asynccontextmanager
async def administrator(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the administrator, without the limits of the services."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def drop(administrator_url: str, name: str) -> None:
    """Drop a database; its connections are closed."""
    async with administrator(administrator_url) as connection:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _name(kind: str) -> str:
    return f"execution_events_{kind}_{secrets.token_hex(4)}"


def _url(administrator_url: str, database: str, user: str | None = None) -> str:
    url = urlsplit(administrator_url)
    netloc = url.netloc
    if user is not None:
        netloc = f"{user}:{PASSWORD}@{url.netloc.rpartition('@')[2]}"
    return urlunsplit((url.scheme, netloc, f"/{database}", url.query, ""))


@asynccontextmanager
async def proxied(database_url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A database behind a proxy that can fail."""
    url = urlsplit(database_url)
    assert url.port is not None
    async with Proxy(url.port) as proxy:
        netloc = f"{url.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}"
        yield proxy, url._replace(netloc=netloc).geturl()
