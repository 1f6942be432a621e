"""A pool of connections for reading."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Literal, NamedTuple
from weakref import WeakValueDictionary

import asyncpg
from asyncpg.cursor import Cursor

from execution_events.store.connection import CONNECT_TIMEOUT, open_session, translated_errors

_IDLE_TIMEOUT = 300
"""Seconds after which an unused connection is replaced: a firewall may have dropped it."""
_CLOSE_TIMEOUT = 2
"""Seconds for PostgreSQL to cancel the statement of a connection that is closed."""


class _Idle(NamedTuple):
    connection: asyncpg.Connection
    since: float


class ReadingPool:
    """A bounded pool of read-only connections, opened on demand and given in order of request.

    One caller has at most three quarters of the connections at a time, so that others need not wait
    for it.

    Callers must leave the session unchanged: no settings, no LISTEN, no advisory locks.

    asyncpg's own pool lets new callers overtake waiting ones, by a second under load, resets
    sessions in an additional round trip, and takes a tenth of the time of a list.
    """

    def __init__(
        self, size: int, prepares: bool, connect: Callable[[], Awaitable[asyncpg.Connection]]
    ) -> None:
        self._prepares = prepares
        self._connect = connect
        self._available = asyncio.Semaphore(size)
        self._share = max(1, size - max(1, size // 4))
        # By caller, while it uses or waits for a connection.
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._idle: list[_Idle] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        database_url: str,
        application: str,
        size: int,
        settings: Mapping[str, str],
        *,
        prepares: bool = True,
    ) -> AsyncIterator["ReadingPool"]:
        """Open a pool of sessions (`connection.open_session`); close them on exit.

        Without prepared statements a pooler may give each transaction another session.
        """
        connect = partial(open_session, database_url, application, settings, prepares=prepares)
        pool = cls(size, prepares, connect)
        try:
            yield pool
        finally:
            closing = (idle.connection.close(timeout=5) for idle in pool._idle)
            await asyncio.gather(*closing, return_exceptions=True)

    @asynccontextmanager
    async def acquire(
        self, share: str | None = None, isolation: Literal["repeatable_read"] | None = None
    ) -> AsyncIterator[asyncpg.Connection]:
        """Take a connection for exclusive use, out of a caller's `share` of them if it is given.

        With `isolation` the connection is in a transaction. Raises `TimeoutError` after
        `CONNECT_TIMEOUT` in the queue, and those of `open_session`.
        """
        own = None if share is None else self._share_of(share)
        if self._available.locked() or (own is not None and own.locked()):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._take(own)
        else:
            await self._take(own)
        try:
            connection = self._usable() or await self._connect()
            try:
                if self._prepares and isolation is None:
                    yield connection
                else:
                    # A statement is prepared and executed by two messages, which a pooler could
                    # send to two sessions.
                    async with _transaction(connection, isolation):
                        yield connection
            except asyncpg.PostgresError:
                # The session survives an error of a statement outside a transaction.
                if connection.is_in_transaction():
                    connection.terminate()
                raise
            except GeneratorExit:
                # A stream that is closed before its end has rolled its transaction back.
                if isolation is None:
                    connection.terminate()
                raise
            except asyncio.CancelledError:
                # The statement would otherwise run to its time limit.
                with suppress(Exception):
                    await connection.close(timeout=_CLOSE_TIMEOUT)
                raise
            except BaseException:
                connection.terminate()
                raise
            finally:
                if not connection.is_closed():
                    now = asyncio.get_running_loop().time()
                    self._idle.append(_Idle(connection, now))
        finally:
            self._available.release()
            if own is not None:
                own.release()

    async def _take(self, own: asyncio.Semaphore | None) -> None:
        # The share first: a caller beyond it must not hold a place of the pool.
        if own is not None:
            await own.acquire()
        try:
            await self._available.acquire()
        except BaseException:
            if own is not None:
                own.release()
            raise

    def _share_of(self, caller: str) -> asyncio.Semaphore:
        share = self._shares.get(caller)
        if share is None:
            share = self._shares[caller] = asyncio.Semaphore(self._share)
        return share

    async def cursor(
        self, connection: asyncpg.Connection, statement: str, *arguments: object
    ) -> Cursor:
        """Open a cursor in the connection's transaction."""
        if self._prepares:
            return await connection.cursor(statement, *arguments)
        # Without a name: another would outlive the transaction, in a session that others use.
        unnamed = await connection.prepare(statement, name="")
        return await unnamed.cursor(*arguments)

    def _usable(self) -> asyncpg.Connection | None:
        """Return the most recently used connection; terminate closed and expired ones."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection, since = self._idle.pop()
            if now - since < _IDLE_TIMEOUT and not connection.is_closed():
                return connection
            connection.terminate()
        return None


@asynccontextmanager
async def _transaction(
    connection: asyncpg.Connection, isolation: Literal["repeatable_read"] | None
) -> AsyncIterator[None]:
    """Hold a read-only transaction; after an error it ends with the connection."""
    transaction = connection.transaction(isolation=isolation, readonly=True)
    await transaction.start()
    try:
        yield
    except GeneratorExit:
        # The caller needs no more of a stream; it is between two statements.
        with translated_errors():
            await transaction.rollback()
        raise
    with translated_errors():
        await transaction.commit()
