"""A reader that polls during an episode: counts and revisions must never decrease."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

import asyncpg

from tests.faults.database import EpisodeDatabase

_INTERVAL = 0.2  # seconds
_QUERY = """
SELECT 'event' AS kind, execution_id || '/' || namespace || '/' || name AS key,
    count AS up, last_timestamp AS late, first_timestamp AS early
FROM execution_events.event
UNION ALL
SELECT 'execution', execution_id || '/' || namespace,
    revision, last_timestamp, first_timestamp
FROM execution_events.execution
"""


class Watch:
    """A poll of all events and executions while the context is open."""

    def __init__(self, database: EpisodeDatabase) -> None:
        self.decreases: list[str] = []
        """A line for each row that decreased or disappeared."""
        self.polls = 0
        self._database = database
        self._seen: dict[tuple[str, str], asyncpg.Record] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._poll())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def forget(self) -> None:
        """Forget the rows seen so far, before the reader moves to another server."""
        self._seen = {}

    async def _poll(self) -> None:
        while True:
            # PostgreSQL is unavailable in some episodes.
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with self._database.connect() as connection:
                    while True:
                        self._compare(await connection.fetch(_QUERY))
                        await asyncio.sleep(_INTERVAL)
            await asyncio.sleep(_INTERVAL)

    def _compare(self, rows: list[asyncpg.Record]) -> None:
        self.polls += 1
        seen = {(row["kind"], row["key"]): row for row in rows}
        for key, old in self._seen.items():
            new = seen.get(key)
            if new is None:
                self.decreases.append(f"{key} disappeared")
            elif new["up"] < old["up"] or new["late"] < old["late"] or new["early"] > old["early"]:
                self.decreases.append(f"{key} changed from {tuple(old)[2:]} to {tuple(new)[2:]}")
        self._seen = seen
