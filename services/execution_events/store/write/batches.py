"""One batch of records, stored in one transaction: rows, offsets, watermarks and dead letters."""

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import NamedTuple, Self

import asyncpg

from execution_events.errors import FencedError, PartitionsLockedError, RetryableError
from execution_events.projection.batch import Projection, ReadRecord, SourceKey, project
from execution_events.projection.fingerprint import Fingerprint, fingerprint
from execution_events.store.connection import (
    address_of,
    connect,
    refused_rows,
    translated_errors,
)
from execution_events.store.schema.migrate import require_current
from execution_events.store.sql import load_queries
from execution_events.store.write.dead_letters import insert_dead_letters
from execution_events.store.write.events import prepare, write_events

_SQL = load_queries("batches")

APPLICATION = "execution-events consumer"
"""The sessions' `application_name`, by which one consumer knows those of others."""
_SERVER_SETTINGS = {
    # A batch that waits for another session holds up all of its partitions.
    "lock_timeout": "5s",
    # A batch that takes longer is halved.
    "statement_timeout": "20s",
    # Rows are found by their keys, whatever the statistics of a table say that has just grown.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
_COMMAND_TIMEOUT = 25
"""Seconds until a server that does not answer is given up; it gives up itself a little earlier."""
_CHANGES_BATCH = 10_000
"""Rows that one statement forgets: some 50 ms."""


class Move(NamedTuple):
    """A partition's stored offset, before a batch and after it, in one epoch of its log."""

    expected: int
    next: int
    epoch: int = 0


class Batch(NamedTuple):
    """What one transaction stores, and where each partition moves.

    Records are sorted by partition and then by offset; the last kept one of each partition tells
    its log from others. A partition may move without a record: over control records and aborted
    transactions.
    """

    records: Sequence[ReadRecord]
    moves: Mapping[int, Move]

    def halves(self) -> "tuple[Batch, Batch]":
        """Two batches that store the same, one after the other; for two records or more."""
        middle = len(self.records) // 2
        left, right = self.records[:middle], self.records[middle:]
        first = right[0]
        in_right = {read_record.partition for read_record in right}
        left_moves = {p: move for p, move in self.moves.items() if p not in in_right}
        right_moves = {p: move for p, move in self.moves.items() if p in in_right}
        if left[-1].partition == first.partition:
            whole = self.moves[first.partition]
            left_moves[first.partition] = whole._replace(next=first.offset)
            right_moves[first.partition] = whole._replace(expected=first.offset)
        return Batch(left, left_moves), Batch(right, right_moves)

    def without(self, partitions: Collection[int]) -> "Batch":
        """The part of the batch that belongs to other partitions."""
        return Batch(
            [record for record in self.records if record.partition not in partitions],
            {p: move for p, move in self.moves.items() if p not in partitions},
        )


class StoredPosition(NamedTuple):
    """How far a partition is stored, and of which log; None where that is not known.

    Each log that an operator has accepted in place of another begins a new epoch.
    """

    epoch: int
    next_offset: int
    cluster_id: str | None
    last: Fingerprint | None


class BatchWriter:
    """The writer of one topic's batches over one connection, opened again after it was lost.

    An asynchronous context manager. Not for concurrent use.
    """

    def __init__(self, database_url: str, topic: str) -> None:
        self._database_url = database_url
        self.address = address_of(database_url)
        self._topic = topic
        self._stack = AsyncExitStack()
        self._connection: asyncpg.Connection | None = None
        self.connections = 0
        """Connections made so far: what was read over an earlier one may not be there any more."""

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

    async def stored_positions(self, partitions: Sequence[int]) -> dict[int, StoredPosition]:
        """The stored position of each of `partitions` that has one."""
        async with self._session() as connection:
            rows = await connection.fetch(_SQL["stored_positions"], self._topic, partitions)
        return {partition: _position(*position) for partition, *position in rows}

    async def locked_partitions(self, partitions: Sequence[int]) -> set[int]:
        """Those of `partitions` that another session has locked now."""
        async with self._session() as connection:
            rows = await connection.fetch(_SQL["locked_partitions"], self._topic, partitions)
        return {row["partition"] for row in rows}

    async def end_lock_holders(self, partitions: Sequence[int]) -> list[int]:
        """End the sessions of consumers of this role that have locked any of `partitions`.

        PostgreSQL rolls their transactions back. Returns their process ids.
        """
        async with self._session() as connection:
            rows = await connection.fetch(
                _SQL["end_lock_holders"], self._topic, partitions, APPLICATION
            )
        return [row["pid"] for row in rows]

    async def begin_partition(self, partition: int, offset: int, cluster_id: str) -> None:
        """Store `offset` as the next of a partition that has none; else change nothing."""
        async with self._session() as connection:
            await connection.execute(
                _SQL["begin_partition"], self._topic, partition, offset, cluster_id
            )

    async def accept_log(self, partition: int, move: Move, cluster_id: str) -> None:
        """Begin a new epoch at `move.next`, in a log of which nothing is known yet.

        Raises `FencedError` where the stored offset is not `move.expected` any more.
        """
        async with self._session() as connection:
            accepted = await connection.fetch(
                _SQL["accept_log"],
                self._topic,
                partition,
                move.epoch,
                move.expected,
                move.next,
                cluster_id,
            )
        if not accepted:
            raise FencedError(f"the stored offset of partition {partition} has just been moved")

    async def store(self, batch: Batch) -> Projection:
        """Store `batch` whole or not at all, and return what it added.

        Safe to call again after any error: a batch that was stored, also by a commit whose reply
        was lost, or that another consumer has overtaken, raises `FencedError` and changes nothing.
        `PartitionsLockedError`: other sessions are in the middle of storing some of its partitions.
        `RetryableError`: the server is away. `BatchRefusedError`: it holds a record that the
        database refuses. `HaltError`: all else.
        """
        async with self._session() as connection, connection.transaction():
            with _answered(connection):
                await self._move_offsets(connection, batch)
                watermarks = await self._watermarks(connection, batch.records)
                projection = project(batch.records, watermarks)
                with refused_rows():
                    await write_events(connection, projection.events)
                await insert_dead_letters(connection, self._topic, projection.dead_letters)
                await self._move_watermarks(connection, projection.watermarks)
        return projection

    async def forget_changes(self, kept: timedelta) -> bool:
        """Forget some of the changes that are older than `kept`; whether others are left.

        Who watches an execution goes on by them, and begins anew where they are gone.
        """
        async with self._session() as connection:
            forgotten = await connection.fetchval(_SQL["forget_changes"], kept, _CHANGES_BATCH)
        return bool(forgotten == _CHANGES_BATCH)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[asyncpg.Connection]:
        """The connection; dropped after a `RetryableError`, as its state is not known then."""
        connection = await self._connected()
        try:
            with translated_errors(self.address), _answered(connection):
                yield connection
        except RetryableError:
            await self._disconnect()
            raise

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            await self._disconnect()
            connection = await self._stack.enter_async_context(
                connect(
                    self._database_url,
                    APPLICATION,
                    _SERVER_SETTINGS,
                    command_timeout=_COMMAND_TIMEOUT,
                )
            )
            with translated_errors(self.address):
                await require_current(connection)
                await prepare(connection)
            self._connection = connection
            self.connections += 1
        return self._connection

    async def _disconnect(self) -> None:
        self._connection = None
        await self._stack.aclose()

    async def _move_offsets(self, connection: asyncpg.Connection, batch: Batch) -> None:
        moves = batch.moves
        last = {r.partition: r.record for r in batch.records if r.record is not None}
        marks = [fingerprint(last[p]) if p in last else (None, None, None) for p in moves]
        rows = await connection.fetch(
            _SQL["move_offsets"],
            self._topic,
            list(moves),
            [move.epoch for move in moves.values()],
            [move.expected for move in moves.values()],
            [move.next for move in moves.values()],
            *([mark[column] for mark in marks] for column in range(3)),
        )
        if fenced := sorted(row["partition"] for row in rows if not row["moved"]):
            raise FencedError(f"the stored offset of partitions {fenced} has been moved by another")
        if len(rows) != len(moves):
            raise PartitionsLockedError(frozenset(moves) - {row["partition"] for row in rows})

    async def _watermarks(
        self, connection: asyncpg.Connection, records: Sequence[ReadRecord]
    ) -> dict[SourceKey, int]:
        sources = {(r.partition, r.origin.source) for r in records if r.origin is not None}
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


@contextmanager
def _answered(connection: asyncpg.Connection) -> Iterator[None]:
    """End a connection that has not answered in time.

    The driver would wait for the answer to what it cancelled, before a rollback for example.
    """
    try:
        yield
    except TimeoutError:
        connection.terminate()
        raise


def _position(
    epoch: int,
    next_offset: int,
    cluster_id: str | None,
    offset: int | None,
    timestamp: int | None,
    digest: bytes | None,
) -> StoredPosition:
    if offset is None or timestamp is None or digest is None:
        return StoredPosition(epoch, next_offset, cluster_id, None)
    return StoredPosition(epoch, next_offset, cluster_id, Fingerprint(offset, timestamp, digest))
