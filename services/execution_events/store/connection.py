"""Connections to PostgreSQL with every timeout set, and translation of asyncpg's errors."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import asyncpg
from asyncpg.exceptions import ClientConfigurationError

from execution_events.errors import (
    BatchRefusedError,
    BatchTooSlowError,
    HaltError,
    MisconfiguredError,
    RetryableError,
)
from execution_events.settings import variable_of
from execution_events.store import sessions
from execution_events.store.pooler import shares_sessions

CONNECT_TIMEOUT = 10
"""Seconds to connect, or to wait for a connection of a pool."""
COMMAND_TIMEOUT = 60
"""Seconds for one command on the client's side; the server's timeout is a little shorter."""

_SUPPORTED_VERSIONS = range(15, 19)
"""Major versions that the statements are tested on."""
_RETRYABLE_CLASSES = ("08", "40", "53", "57")
_REFUSED_CLASSES = ("22", "23", "54")
_UNIQUE_VIOLATION = "23505"
"""Never caused by a record: rows are inserted under their execution's lock, if missing."""
_STATEMENT_TIMEOUT = "57014"
_RETRYABLE_STATES = ("55P03", "25006")

_URL = variable_of("database_url")
_MIGRATE = "run `execution-events migrate` as the database's owner, which grants what is missing"
_POOLED = (
    "behind a pooler in transaction mode: connect to the server, or to a pooler in session mode; "
    f"only the reader works there, with {variable_of('database_prepared_statements')}=false"
)
_REMEDIES = {
    "08P01": f"correct the parameters of {_URL}, or let the pooler accept them",
    "28000": f"correct the user of {_URL}, or permit its login (pg_hba.conf, ALTER ROLE … LOGIN)",
    "28P01": f"correct the user or the password of {_URL}",
    "3D000": f"correct the database of {_URL}, or create it",
    "42501": f"correct the user of {_URL}, or {_MIGRATE}",
    # A prepared statement that is missing, or exists already.
    "26000": f"the session was exchanged, as {_POOLED}",
    "42P05": f"the session was exchanged, as {_POOLED}",
}
"""Remedies by SQLSTATE, of errors that no further attempt mends."""


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
    exceeded its timeout; `MisconfiguredError`: settings or privileges are wrong. `HaltError`: any
    other error of the server. Messages name the `address`.
    """
    server = "PostgreSQL" if address is None else f"PostgreSQL at {address}"
    try:
        yield
    except asyncpg.PostgresError as error:
        state = error.sqlstate or ""
        if remedy := _REMEDIES.get(state):
            text = f"{server}: {error.args[0]} ({state}): {remedy}"
            raise MisconfiguredError(text, state) from error
        if state == _STATEMENT_TIMEOUT:
            raise BatchTooSlowError(f"{server}: {error} ({state})", state) from error
        if state.startswith(_RETRYABLE_CLASSES) or state in _RETRYABLE_STATES:
            raise RetryableError(f"{server}: {error} ({state})", state) from error
        raise HaltError(f"{server} refused a statement: {error} ({state})") from error
    except ssl.SSLCertVerificationError as error:
        text = f"{server}: {error}: correct sslmode or sslrootcert of {_URL}"
        raise MisconfiguredError(text, type(error).__name__) from error
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        name = type(error).__name__
        reason = str(error) or "timeout"
        raise RetryableError(f"{server} cannot be reached: {reason}", name) from error
    except ClientConfigurationError as error:
        raise MisconfiguredError(f"{_URL}: {error}", type(error).__name__) from error
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


async def open_session(
    database_url: str,
    application: str,
    settings: Mapping[str, str],
    *,
    command_timeout: float | None = COMMAND_TIMEOUT,
    prepares: bool = True,
) -> asyncpg.Connection:
    """Connect as `application`, and apply `settings` to the session.

    With `prepares` the session must be the connection's own: raises `MisconfiguredError` behind a
    pooler in transaction mode. Without, the caller must run each statement in a transaction, and
    the settings are those of the role. Raises asyncpg's errors, and `MisconfiguredError` for a
    login that is refused.
    """

    async def connected() -> asyncpg.Connection:
        # Poolers refuse other parameters than this one.
        return await asyncpg.connect(
            database_url,
            timeout=CONNECT_TIMEOUT,
            command_timeout=command_timeout,
            statement_cache_size=100 if prepares else 0,
            server_settings={"application_name": application},
        )

    address = address_of(database_url)
    with _refused_logins(address):
        connection = await connected()
    try:
        _require_supported(connection)
        if not prepares:
            return connection
        if await shares_sessions(connection, connected):
            raise MisconfiguredError(f"PostgreSQL at {address} is {_POOLED}", "pooler")
        await connection.execute(
            "; ".join(f"SET {name} = '{value}'" for name, value in settings.items())
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


@contextmanager
def _refused_logins(address: str) -> Iterator[None]:
    """Raise `MisconfiguredError` for a permanent error that `_REMEDIES` does not have.

    Such as an unknown parameter in the URL.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        state = error.sqlstate or ""
        if state in _REMEDIES or state.startswith(_RETRYABLE_CLASSES):
            raise
        server = f"PostgreSQL at {address}"
        text = f"{server} refused the connection: {error.args[0]} ({state}): correct {_URL}"
        raise MisconfiguredError(text, state) from error


def _require_supported(connection: asyncpg.Connection) -> None:
    """Raise `HaltError` unless the server's major version and the encoding are supported.

    The server reports both when a connection begins, before the first statement.
    """
    version = connection.get_server_version().major
    encoding = connection.get_settings().server_encoding
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
    settings: Mapping[str, str] = sessions.COMMAND,
    *,
    command_timeout: float = COMMAND_TIMEOUT,
    unlimited: bool = False,
) -> AsyncIterator[asyncpg.Connection]:
    """Open a session, and close it on exit.

    `unlimited` lifts the timeout of statements, for migrations.
    """
    if unlimited:
        settings = {**settings, "statement_timeout": "0", "lock_timeout": "60s"}
    with translated_errors(address_of(database_url)):
        connection = await open_session(
            database_url,
            application,
            settings,
            command_timeout=None if unlimited else command_timeout,
        )
    try:
        yield connection
    finally:
        try:
            await connection.close(timeout=5)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            connection.terminate()
