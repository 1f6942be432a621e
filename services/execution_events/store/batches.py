"""One batch of records, stored in one transaction: rows, offsets, watermarks and dead letters."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import NamedTuple, Self

import asyncpg

from execution_events.errors import FencedError, RetryableError
from execution_events.projection.batch import Projection, ReadRecord, SourceKey, project
from execution_events.store.database import connect, translated_errors
from execution_events.store.dead_letters import insert_dead_letters
from execution_events.store.events import prepare, write_events
from execution_events.store.migrate import require_current
from execution_events.store.sql import load_queries

_SQL = load_queries("batches")


class Move(NamedTuple):
    """A partition's stored offset, before a batch and after it."""

    expected: int
    next: int


class Batch(NamedTuple):
    """What one transaction stores: records in log order, and where each partition moves.

    A partition may move without a record: over control records and aborted transactions.
    """

    records: Sequence[ReadRecord]
    moves: Mapping[int, Move]


class BatchWriter:
    """The writer of one topic's batches over one connection, opened again after it was lost.

    An asynchronous context manager. Not for concurrent use.
    """

    def __init__(self, database_url: str, topic: str) -> None:
        self._database_url = database_url
        self._topic = topic
        self._stack = AsyncExitStack()
        self._connection: asyncpg.Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._disconnect()

    async def connect(self) -> None:
        """Connect and check the schema; raises `RetryableError` or `HaltError`."""
        await self._connected()

    async def stored_offsets(self, partitions: Sequence[int]) -> dict[int, int]:
        """The stored next offset of each of `partitions` that has one."""
        connection = await self._connected()
        with translated_errors():
            rows = await connection.fetch(_SQL["stored_offsets"], self._topic, partitions)
        return {row["partition"]: row["next_offset"] for row in rows}

    async def begin_partition(self, partition: int, offset: int) -> None:
        """Store `offset` as the next of a partition that has none; else change nothing."""
        connection = await self._connected()
        with translated_errors():
            await connection.execute(_SQL["begin_partition"], self._topic, partition, offset)

    async def store(self, batch: Batch) -> Projection:
        """Store `batch` whole or not at all, and return what it added.

        Safe to call again after any error: a batch that was stored, also by a commit whose reply
        was lost, or that another consumer has overtaken, raises `FencedError` and changes nothing.
        `RetryableError`: the server is away. `HaltError`: all else.
        """
        connection = await self._connected()
        try:
            with translated_errors():
                async with connection.transaction():
                    await self._move_offsets(connection, batch.moves)
                    watermarks = await self._watermarks(connection, batch.records)
                    projection = project(batch.records, watermarks)
                    await write_events(connection, projection.events)
                    await insert_dead_letters(connection, self._topic, projection.dead_letters)
                    await self._move_watermarks(connection, projection.watermarks)
        except RetryableError:
            # What is left of the connection after a time-out is not worth knowing.
            await self._disconnect()
            raise
        return projection

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            await self._disconnect()
            connection = await self._stack.enter_async_context(
                connect(self._database_url, "execution-events consumer")
            )
            await require_current(connection)
            with translated_errors():
                await prepare(connection)
            self._connection = connection
        return self._connection

    async def _disconnect(self) -> None:
        self._connection = None
        await self._stack.aclose()

    async def _move_offsets(
        self, connection: asyncpg.Connection, moves: Mapping[int, Move]
    ) -> None:
        moved = await connection.fetch(
            _SQL["move_offsets"],
            self._topic,
            list(moves),
            [move.expected for move in moves.values()],
            [move.next for move in moves.values()],
        )
        if len(moved) != len(moves):
            lost = sorted(set(moves) - {row["partition"] for row in moved})
            raise FencedError(f"the stored offset of partitions {lost} has been moved by another")

    async def _watermarks(
        self, connection: asyncpg.Connection, records: Sequence[ReadRecord]
    ) -> dict[SourceKey, int]:
        sources = {(r.record.partition, r.origin.source) for r in records if r.origin is not None}
        if not sources:
            return {}
        partitions, names = zip(*sources, strict=True)
        rows = await connection.fetch(_SQL["watermarks"], self._topic, partitions, names)
        return {(row["partition"], row["source"]): row["sequence"] for row in rows}

    async def _move_watermarks(
        self, connection: asyncpg.Connection, watermarks: Mapping[SourceKey, int]
    ) -> None:
        if watermarks:
            await connection.execute(
                _SQL["move_watermarks"],
                self._topic,
                [partition for partition, _ in watermarks],
                [source for _, source in watermarks],
                list(watermarks.values()),
            )
