"""The events of one execution, as the reader lists them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import asyncpg
import msgspec

from execution_events.store.database import CONNECT_TIMEOUT, open_pool, translated_errors
from execution_events.store.migrate import require_current
from execution_events.store.sql import load_queries

_SQL = load_queries("listing")


class ListedEvent(msgspec.Struct, frozen=True, gc=False):
    """One event; timestamps are aware, in UTC, to the microsecond."""

    name: str
    namespace: str
    object_name: str
    object_namespace: str
    reason: str
    message: str
    first_timestamp: datetime
    last_timestamp: datetime
    count: int
    type: str
    elem_type: str
    elem_id: str
    action_name: str


class EventLists:
    """Lists of events over a pool of connections; safe for concurrent use."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def open(cls, database_url: str, size: int = 8) -> AsyncIterator["EventLists"]:
        """Lists over at most `size` connections, which are opened when they are needed."""
        async with open_pool(database_url, "execution-events reader", size) as pool:
            yield cls(pool)

    async def of_execution(self, execution_id: str) -> list[ListedEvent]:
        """All events of an execution, in order of creation, as of one moment.

        An execution that is not known has none.
        """
        with translated_errors():
            async with self._pool.acquire(timeout=CONNECT_TIMEOUT) as connection:
                rows = await connection.fetch(_SQL["events_of_execution"], execution_id)
        return [ListedEvent(*row) for row in rows]

    async def check(self) -> None:
        """Raise `RetryableError` or `HaltError` unless lists can be read."""
        with translated_errors():
            async with self._pool.acquire(timeout=CONNECT_TIMEOUT) as connection:
                await require_current(connection)
