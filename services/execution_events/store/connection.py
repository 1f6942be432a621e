"""Connections to PostgreSQL with every timeout set, and translation of asyncpg's errors."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from execution_events.errors import BatchRefusedError, BatchTooSlowError, HaltError, RetryableError

CONNECT_TIMEOUT = 10
"""Seconds to connect, or to wait for a connection of a pool."""
COMMAND_TIMEOUT = 60
"""Seconds for one command on the client's side; the server's timeout is a little shorter."""

_SERVER_SETTINGS = {
    "search_path": "execution_events",
    # The server ends the sessions of unreachable hosts, which releases their locks.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
    "statement_timeout": "55s",
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
}
_SUPPORTED_VERSIONS = range(15, 19)
"""Major versions that the statements are tested on."""
_RETRYABLE_CLASSES = ("08", "40", "53", "57")
_REFUSED_CLASSES = ("22", "23", "54")
_UNIQUE_VIOLATION = "23505"
"""Never caused by a record: rows are inserted under their execution's lock, if missing."""
_STATEMENT_TIMEOUT = "57014"
_RETRYABLE_STATES = ("55P03", "25006")


@contextmanager
def refused_rows() -> Iterator[None]:
    """Raise `BatchRefusedError` if PostgreSQL refuses the data of a row."""
    try:
        yield
    except asyncpg.PostgresError as error:
        state = error.sqlstate or ""
        if state.startswith(_REFUSED_CLASSES) and state != _UNIQUE_VIOLATION:
            # The server's message may quote the record.
            check = f" {error.constraint_name}" if error.constraint_name else ""
            raise BatchRefusedError(f"{type(error).__name__}{check} ({state})") from error
        raise


def address_of(database_url: str) -> str:
    """Return the hosts and ports of a database URL, without user and password."""
    return urlsplit(database_url).netloc.rpartition("@")[2] or "the default address"


@contextmanager
def translated_errors(address: str | None = None) -> Iterator[None]:
    """Translate asyncpg's errors by SQLSTATE and class, never by message.

    `RetryableError`: the server is unavailable, busy or read-only; `BatchTooSlowError`: a statement
    exceeded its timeout. `HaltError`: any other error of the server. Messages name the `address`.
    """
    server = "PostgreSQL" if address is None else f"PostgreSQL at {address}"
    try:
        yield
    except asyncpg.PostgresError as error:
        state = error.sqlstate or ""
        if state == _STATEMENT_TIMEOUT:
            raise BatchTooSlowError(f"{server}: {error} ({state})", state) from error
        if state.startswith(_RETRYABLE_CLASSES) or state in _RETRYABLE_STATES:
            raise RetryableError(f"{server}: {error} ({state})", state) from error
        raise HaltError(f"{server} refused a statement: {error} ({state})") from error
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        name = type(error).__name__
        raise RetryableError(f"{server} cannot be reached: {error or 'timeout'}", name) from error
    except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # The connection was closed or its state lost, mostly during a rollback: the context is the
        # error that caused it.
        cause = error.__context__ or error
        name = type(cause).__name__
        raise RetryableError(f"{server}: {name}: {cause}", name) from error


async def fetch_one(
    connection: asyncpg.Connection, statement: str, *arguments: object
) -> asyncpg.Record:
    """Return the first row of a statement that always returns one."""
    row = await connection.fetchrow(statement, *arguments)
    if row is None:
        raise LookupError(f"no row: {statement}")
    return row


def options(application: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return arguments of `asyncpg.connect`: every timeout, and server `settings` added to ours.

    `application` is the connection's `application_name`.
    """
    return {
        "timeout": CONNECT_TIMEOUT,
        "command_timeout": COMMAND_TIMEOUT,
        "server_settings": {**_SERVER_SETTINGS, "application_name": application, **settings},
    }


async def open_connection(database_url: str, arguments: Mapping[str, Any]) -> asyncpg.Connection:
    """Open a connection with `options`; raise `HaltError` if its server is not supported."""
    connection: asyncpg.Connection = await asyncpg.connect(database_url, **arguments)
    try:
        _require_supported(
            connection.get_server_version().major, connection.get_settings().server_encoding
        )
    except HaltError:
        connection.terminate()
        raise
    return connection


def _require_supported(version: int, encoding: str) -> None:
    """Raise `HaltError` unless the server's major version and the encoding are supported.

    The server reports both when a connection begins, before the first statement.
    """
    if version not in _SUPPORTED_VERSIONS:
        oldest, newest = _SUPPORTED_VERSIONS[0], _SUPPORTED_VERSIONS[-1]
        raise HaltError(
            f"the database is on PostgreSQL {version}, which this version of execution-events does"
            f" not support: use PostgreSQL {oldest} to {newest}"
        )
    if encoding != "UTF8":
        raise HaltError(
            f"the database has the encoding {encoding}, supported is UTF8 alone: create one with"
            " `CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0`"
        )


@asynccontextmanager
async def connect(
    database_url: str,
    application: str,
    settings: Mapping[str, str] | None = None,
    *,
    command_timeout: float = COMMAND_TIMEOUT,
    unlimited: bool = False,
) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection with `options`, and close it on exit.

    `unlimited` lifts the timeout of statements, for migrations.
    """
    arguments = options(application, settings or {}) | {"command_timeout": command_timeout}
    if unlimited:
        arguments["command_timeout"] = None
        arguments["server_settings"] |= {"statement_timeout": "0", "lock_timeout": "60s"}
    with translated_errors(address_of(database_url)):
        connection = await open_connection(database_url, arguments)
    try:
        yield connection
    finally:
        try:
            await connection.close(timeout=5)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            connection.terminate()
