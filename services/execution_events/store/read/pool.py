"""Connections for reading, shared by many requests."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg

from execution_events.store.connection import CONNECT_TIMEOUT, options

_IDLE = 300
"""Seconds after which a connection that nobody used is not trusted any more."""


class _Free(NamedTuple):
    connection: asyncpg.Connection
    since: float


class ReadingPool:
    """At most `size` connections for SELECT alone, opened when they are needed.

    First come, first served. Whoever takes a connection leaves its session as it was: they set
    nothing, listen to nothing, and take no advisory lock.

    Not asyncpg's own pool: that lets newcomers overtake who waits, for a second under load, resets
    sessions in a second round trip, and takes a tenth of the time of a list.
    """

    def __init__(self, database_url: str, size: int, connect: Mapping[str, Any]) -> None:
        self._database_url = database_url
        self._connect = connect
        self._places = asyncio.Semaphore(size)
        self._free: list[_Free] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls, database_url: str, application: str, size: int, settings: Mapping[str, str]
    ) -> AsyncIterator["ReadingPool"]:
        """A pool whose connections have `database.options`; at the end they are closed."""
        pool = cls(database_url, size, options(application, settings))
        try:
            yield pool
        finally:
            closing = (free.connection.close(timeout=5) for free in pool._free)
            await asyncio.gather(*closing, return_exceptions=True)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the caller's own; raises the driver's errors, and `TimeoutError`."""
        if self._places.locked():
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._places.acquire()
        else:
            await self._places.acquire()
        try:
            connection = self._usable() or await asyncpg.connect(
                self._database_url, **self._connect
            )
            try:
                yield connection
            except asyncpg.PostgresError:
                # The session goes on after an error of a statement.
                if connection.is_in_transaction():
                    connection.terminate()
                raise
            except BaseException:
                connection.terminate()
                raise
            finally:
                if not connection.is_closed():
                    now = asyncio.get_running_loop().time()
                    self._free.append(_Free(connection, now))
        finally:
            self._places.release()

    def _usable(self) -> asyncpg.Connection | None:
        """The connection that was used last; closes those that are not to be used again."""
        now = asyncio.get_running_loop().time()
        while self._free:
            connection, since = self._free.pop()
            if now - since < _IDLE and not connection.is_closed():
                return connection
            connection.terminate()
        return None
