"""Batches of records, each stored in one transaction with offsets, watermarks and dead letters."""

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import NamedTuple, Self

import asyncpg

from execution_events.errors import FencedError, RetryableError
from execution_events.projection.batch import Projection, ReadRecord, SourceKey, project
from execution_events.projection.fingerprint import Fingerprint, fingerprint
from execution_events.store.connection import (
    address_of,
    connect,
    refused_rows,
    translated_errors,
)
from execution_events.store.schema.migrate import require_compatible
from execution_events.store.schema.roles import require_right
from execution_events.store.sessions import CONSUMER
from execution_events.store.sql import load_queries
from execution_events.store.write import progress
from execution_events.store.write.dead_letters import insert_dead_letters
from execution_events.store.write.events import prepare, purge_changes, write_events
from execution_events.store.write.known import KnownExecutions
from execution_events.store.write.progress import OffsetMove, StoredPosition
from execution_events.store.write.rates import add_rates, purge_rates

_SQL = load_queries("progress")

APPLICATION = "execution-events consumer"
"""The sessions' `application_name`, by which consumers recognize each other's sessions."""
_COMMAND_TIMEOUT = 25
"""Seconds for one command on the client's side; the server's timeout is a little shorter."""


class Batch(NamedTuple):
    """The records of one transaction, and the offset moves of their partitions.

    Records are sorted by partition and offset. A partition may move without records, over control
    records and aborted transactions.
    """

    records: Sequence[ReadRecord]
    moves: Mapping[int, OffsetMove]

    def sources(self) -> set[SourceKey]:
        """Return the keys of the watermarks that apply to the records."""
        return {(r.partition, r.origin.source) for r in self.records if r.origin is not None}

    def fingerprints(self) -> dict[int, Fingerprint]:
        """Return the fingerprint of each partition's last kept record, which identifies its log."""
        last = {r.partition: r.record for r in self.records if r.record is not None}
        return {partition: fingerprint(record) for partition, record in last.items()}

    def halves(self) -> "tuple[Batch, Batch]":
        """Split a batch of at least two records into two, to be stored in order."""
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
        """Return the batch without `partitions`."""
        return Batch(
            [record for record in self.records if record.partition not in partitions],
            {p: move for p, move in self.moves.items() if p not in partitions},
        )


class BatchWriter:
    """The writer of one topic's batches, over one connection that is reopened after an error.

    An asynchronous context manager; not for concurrent use. Each method raises `RetryableError` if
    PostgreSQL is unavailable and `HaltError` for other errors.
    """

    def __init__(self, database_url: str, topic: str) -> None:
        self._database_url = database_url
        self.address = address_of(database_url)
        self._topic = topic
        self._stack = AsyncExitStack()
        self._connection: asyncpg.Connection | None = None
        self._known = KnownExecutions()
        self.connections = 0
        """Number of connections opened; rows read over an earlier one may be lost by a failover."""

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
        """Connect and check the schema."""
        await self._connected()

    async def stored_positions(self, partitions: Sequence[int]) -> dict[int, StoredPosition]:
        """Return the stored position of each partition that has one."""
        async with self._session() as connection:
            return await progress.stored_positions(connection, self._topic, partitions)

    async def locked_partitions(self, partitions: Sequence[int]) -> set[int]:
        """Return the partitions that other sessions have locked."""
        async with self._session() as connection:
            rows = await connection.fetch(_SQL["locked_partitions"], self._topic, partitions)
        return {row["partition"] for row in rows}

    async def end_lock_holders(self, partitions: Sequence[int]) -> list[int]:
        """End other consumers' sessions that have locked any of the partitions.

        PostgreSQL rolls their transactions back. Returns their process ids.
        """
        async with self._session() as connection:
            rows = await connection.fetch(
                _SQL["end_lock_holders"], self._topic, partitions, APPLICATION
            )
        return [row["pid"] for row in rows]

    async def begin_partition(self, partition: int, offset: int, cluster_id: str) -> None:
        """Store `offset` as a partition's next offset, unless it has one."""
        async with self._session() as connection:
            await connection.execute(
                _SQL["begin_partition"], self._topic, partition, offset, cluster_id
            )

    async def accept_log(self, partition: int, move: OffsetMove, cluster_id: str) -> None:
        """Begin a new epoch at `move.next`, in a log without a fingerprint.

        Raises `FencedError` if the stored offset is not `move.expected`.
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
        """Store `batch` in one transaction, and return its projection.

        Safe to repeat after any error: a batch that was already stored, by a commit whose reply was
        lost or by another consumer, raises `FencedError` and changes nothing.
        `PartitionsLockedError`: other sessions are storing some of its partitions.
        `BatchRefusedError`: a constraint refuses one of its records.
        """
        async with self._session() as connection, connection.transaction():
            with _terminated_on_timeout(connection):
                await progress.move_offsets(
                    connection, self._topic, batch.moves, batch.fingerprints()
                )
                watermarks = await progress.read_watermarks(
                    connection, self._topic, batch.sources()
                )
                projection = project(batch.records, watermarks)
                with refused_rows():
                    executions = await write_events(
                        connection, projection.events, projection.objects, self._known
                    )
                await insert_dead_letters(connection, self._topic, projection.dead_letters)
                await progress.move_watermarks(connection, self._topic, projection.watermarks)
                await add_rates(connection, self._topic, projection.rates)
        for key, execution in executions.items():
            self._known.put(key, execution)
        return projection

    async def purge_changes(self, retention: timedelta) -> bool:
        """Delete a batch of changes older than `retention`; return whether more are left.

        A watcher whose next change is deleted begins again with the whole list.
        """
        async with self._session() as connection:
            return await purge_changes(connection, retention)

    async def purge_rates(self) -> None:
        """Delete rates by minute that are older than 14 days, a limited number at once."""
        async with self._session() as connection:
            await purge_rates(connection)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[asyncpg.Connection]:
        """Give the connection; close it after a `RetryableError`, as its state is unknown."""
        connection = await self._connected()
        try:
            with translated_errors(self.address), _terminated_on_timeout(connection):
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
                    CONSUMER,
                    command_timeout=_COMMAND_TIMEOUT,
                )
            )
            with translated_errors(self.address):
                await require_compatible(connection)
                await require_right(connection, "event", "INSERT", "execution_events_writer")
                await prepare(connection)
            self._connection = connection
            self.connections += 1
        return self._connection

    async def _disconnect(self) -> None:
        self._connection = None
        self._known = KnownExecutions()
        await self._stack.aclose()


@contextmanager
def _terminated_on_timeout(connection: asyncpg.Connection) -> Iterator[None]:
    """Terminate the connection after a `TimeoutError`.

    asyncpg would otherwise wait for the reply to the cancelled command before a rollback.
    """
    try:
        yield
    except TimeoutError:
        connection.terminate()
        raise
