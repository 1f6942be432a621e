"""Seeding: assigned partitions continue at their stored offsets once their logs are compared."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

from aiokafka import TopicPartition

from execution_events.backoff import backoff
from execution_events.consumer.assignment import Assignment
from execution_events.consumer.log_check import LogState, Report, difference
from execution_events.errors import RetryableError
from execution_events.logs import Logger
from execution_events.metrics import ConsumerMetrics
from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.progress import StoredPosition

_log = Logger(__name__)

_RECHECK_INTERVAL = 15
"""Seconds between looks at a halted partition: an operator may have accepted or mended its log."""
_VERIFY_INTERVAL = 10
"""Seconds between readings of the stored offsets, which a failover may have set back."""
_LOCK_PATIENCE = 5
"""Seconds for which another session may hold a partition before it is ended."""
_LOCK_INTERVAL = 0.5
"""Seconds between looks at a partition that another session holds."""

ReadLog = Callable[
    [Mapping[int, StoredPosition | None], Mapping[int, int], Report], Awaitable[None]
]
"""Reports the state of the log of each partition."""


class _Retry(NamedTuple):
    """The time of a partition's next attempt, and its failures in a row."""

    at: float
    failures: int = 0


class Seeder:
    """Seeds, delays and halts the partitions of an assignment, each by itself.

    `failed_at` holds the offsets that could not be fetched or read, over the life of several
    clients. The logs are read in tasks of their own, so that `advance`, which uses the writer
    between two batches, never waits for Kafka.
    """

    def __init__(
        self,
        assignment: Assignment,
        writer: BatchWriter,
        metrics: ConsumerMetrics,
        read_log: ReadLog,
        failed_at: dict[int, int],
    ) -> None:
        self._assignment = assignment
        self._writer = writer
        self._metrics = metrics
        self._read_log = read_log
        self._failed_at = failed_at
        self._generation = assignment.generation
        self._reading: dict[TopicPartition, StoredPosition | None] = {}
        self._states: list[tuple[TopicPartition, LogState | RetryableError]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._retries: dict[TopicPartition, _Retry] = {}
        self._locked_since: dict[TopicPartition, float] = {}
        self._verified = (0, 0.0)
        self._changed = asyncio.Event()

    async def advance(self) -> None:
        """Run all steps that are due; raises `RetryableError` while PostgreSQL is away."""
        if self._generation != self._assignment.generation:
            self._forget()
        await self._verify()
        await self._settle()
        await self._look_at_locks()
        await self._begin_reading()

    async def wait(self, timeout: float) -> None:
        """Return when a log has been read, at most after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def close(self) -> None:
        """End the tasks that read logs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def found_unreadable(self, partition: TopicPartition, offset: int, reason: str) -> None:
        """Halt `partition` at a batch that cannot be read; all before it is stored."""
        self._failed_at[partition.partition] = offset
        self._halt(partition, reason)

    def found_refused(self, partition: TopicPartition, offset: int, error: RetryableError) -> None:
        """Try again later to read `partition`, whose fetch failed."""
        self._failed_at[partition.partition] = offset
        self._delay(partition, error)

    def found_locked(self, partitions: Iterable[TopicPartition]) -> None:
        """Delay partitions that other sessions have locked until these sessions end."""
        now = time.monotonic()
        for partition in partitions:
            self._locked_since.setdefault(partition, now)
            self._retries[partition] = _Retry(now)
            self._assignment.delay(
                partition,
                f"PostgreSQL at {self._writer.address}: another session has locked partition "
                f"{partition.partition}",
            )

    def _forget(self) -> None:
        self._generation = self._assignment.generation
        for task in self._tasks:
            task.cancel()
        self._reading.clear()
        self._states.clear()
        self._retries.clear()
        self._locked_since.clear()

    async def _verify(self) -> None:
        """Compare positions with the stored offsets, after each new connection and periodically.

        A failover or a restore may have lost commits; without a new record nothing else fails.
        """
        connections, at = self._verified
        positions = self._assignment.positions
        if connections == self._writer.connections and time.monotonic() < at + _VERIFY_INTERVAL:
            return
        stored = await self._writer.stored_positions([p.partition for p in positions])
        for partition, offset in list(positions.items()):
            found = stored.get(partition.partition)
            if found is None or found[:2] != (self._assignment.epochs[partition], offset):
                _log.warning(
                    "stored_offset_moved",
                    partition=partition.partition,
                    believed=offset,
                    stored=None if found is None else found.next_offset,
                )
                self._assignment.unseed(partition)
        self._verified = self._writer.connections, time.monotonic()

    async def _settle(self) -> None:
        """Seed, delay or halt the partitions whose logs were read."""
        self._changed.clear()
        states, self._states = self._states, []
        for number, (partition, state) in enumerate(states):
            if self._generation != self._assignment.generation:
                return
            try:
                await self._settle_one(partition, self._reading[partition], state)
            except RetryableError:
                self._states += states[number:]
                raise
            del self._reading[partition]

    async def _settle_one(
        self,
        partition: TopicPartition,
        position: StoredPosition | None,
        state: LogState | RetryableError,
    ) -> None:
        if isinstance(state, RetryableError):
            self._delay(partition, state)
            return
        number = partition.partition
        if position is None:
            position = await self._begin(number, state)
            if self._generation != self._assignment.generation:
                return
        if (reason := difference(position, state)) is not None:
            self._halt(partition, reason)
            return
        self._retries.pop(partition, None)
        self._locked_since.pop(partition, None)
        self._failed_at.pop(number, None)
        self._assignment.seed(partition, position.next_offset, position.epoch)

    async def _begin(self, number: int, state: LogState) -> StoredPosition:
        """Begin a partition without a stored offset where its log begins."""
        await self._writer.begin_partition(number, state.begin, state.cluster_id)
        if state.begin > 0:
            self._metrics.unseen.inc(state.begin)
            _log.warning(
                "partition_begins_late", partition=number, offset=state.begin, unseen=state.begin
            )
        return (await self._writer.stored_positions([number]))[number]

    def _delay(self, partition: TopicPartition, error: RetryableError) -> None:
        self._metrics.retries.labels(error.cause).inc()
        failures = self._retries.get(partition, _Retry(0)).failures
        self._retries[partition] = _Retry(time.monotonic() + backoff(failures), failures + 1)
        self._assignment.delay(partition, str(error))

    def _halt(self, partition: TopicPartition, reason: str) -> None:
        self._assignment.halt(partition, reason)
        self._retries[partition] = _Retry(time.monotonic() + _RECHECK_INTERVAL)

    async def _look_at_locks(self) -> None:
        """End sessions that hold partitions for too long, and resume partitions that are free.

        A consumer that is frozen while it stores a batch keeps its locks: PostgreSQL has no time
        limit for a client in the middle of COPY.
        """
        now = time.monotonic()
        due = [p for p in self._locked_since if self._retries[p].at <= now and self._may_read(p)]
        if not due:
            return
        locked = await self._writer.locked_partitions([p.partition for p in due])
        held = [p for p in due if p.partition in locked]
        for partition in set(due) - set(held):
            del self._locked_since[partition]
        for partition in held:
            self._retries[partition] = _Retry(now + _LOCK_INTERVAL)
        late = [p.partition for p in held if now - self._locked_since[p] >= _LOCK_PATIENCE]
        if late and (ended := await self._writer.end_lock_holders(late)):
            self._metrics.ended_sessions.inc(len(ended))
            _log.warning("lock_holders_ended", partitions=late, backends=ended)

    async def _begin_reading(self) -> None:
        now = time.monotonic()
        waiting = [*self._assignment.unseeded(), *self._assignment.halted]
        due = [
            partition
            for partition in waiting
            if self._may_read(partition)
            and partition not in self._locked_since
            and self._retries.get(partition, _Retry(0)).at <= now
        ]
        if not due:
            return
        stored = await self._writer.stored_positions([p.partition for p in due])
        if self._generation != self._assignment.generation:
            return
        for partition in due:
            self._reading[partition] = stored.get(partition.partition)
        task = asyncio.create_task(self._read(due))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _may_read(self, partition: TopicPartition) -> bool:
        return partition in self._assignment.assigned and partition not in self._reading

    async def _read(self, partitions: list[TopicPartition]) -> None:
        generation = self._generation
        left = {partition.partition: partition for partition in partitions}

        def report(number: int, state: LogState | RetryableError) -> None:
            partition = left.pop(number)
            if generation == self._generation:
                self._states.append((partition, state))
                self._changed.set()

        stored = {partition.partition: self._reading[partition] for partition in partitions}
        error: RetryableError | None = None
        try:
            await self._read_log(stored, self._failed_at, report)
        except RetryableError as failure:
            error = failure
        except Exception as failure:
            # Whatever the library raises: a partition that nobody reports would wait for ever.
            _log.exception("log_read_failed")
            error = RetryableError(f"Kafka: {type(failure).__name__}: {failure}")
        for number in list(left):
            report(number, error or RetryableError(f"Kafka: partition {number} gave no answer"))
