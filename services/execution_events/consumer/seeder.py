"""Seeding of assigned partitions at their stored offsets, once their logs are checked."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

from aiokafka import TopicPartition

from execution_events.backoff import backoff
from execution_events.consumer.assignment import Assignment
from execution_events.consumer.log_check import LogState, Report, log_mismatch
from execution_events.errors import RetryableError
from execution_events.kafka.errors import error_text
from execution_events.logs import Logger
from execution_events.metrics import ConsumerMetrics
from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.progress import StoredPosition

_log = Logger(__name__)

_RECHECK_INTERVAL = 15
"""Seconds between checks of a halted partition: its log may have been accepted or repaired."""
_VERIFY_INTERVAL = 10
"""Seconds between comparisons with the stored offsets, which a failover may have set back."""
_LOCK_TIMEOUT = 5
"""Seconds for which another session may lock a partition before that session is ended."""
_LOCK_INTERVAL = 0.5
"""Seconds between checks of a partition that another session has locked."""

ReadLog = Callable[
    [Mapping[int, StoredPosition | None], Mapping[int, int], Report], Awaitable[None]
]
"""Reports the state of each partition's log."""


class _Retry(NamedTuple):
    """The time of a partition's next attempt, and its consecutive failures."""

    at: float
    failures: int = 0


class Seeder:
    """Seeds, delays and halts the partitions of an assignment one by one.

    `failed_at` holds the offsets that could not be fetched or read; it outlives a client. Logs are
    read in separate tasks, so that `advance`, which uses the writer between two batches, never
    waits for Kafka.
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
        self._state_reported = asyncio.Event()

    async def advance(self) -> None:
        """Run every step that is due; raises `RetryableError` while PostgreSQL is unavailable."""
        if self._generation != self._assignment.generation:
            self._reset()
        await self._verify_positions()
        await self._apply_log_states()
        await self._check_locks()
        await self._start_log_reads()

    async def wait(self, timeout: float) -> None:
        """Return once a log has been read, after `timeout` seconds at the latest."""
        try:
            async with asyncio.timeout(timeout):
                await self._state_reported.wait()
        except TimeoutError:
            pass

    async def close(self) -> None:
        """Cancel the tasks that read logs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def halt_unreadable(self, partition: TopicPartition, offset: int, error: str) -> None:
        """Halt `partition` at a batch that cannot be read; all records before it are stored."""
        self._failed_at[partition.partition] = offset
        self._halt(partition, error)

    def delay_failed(self, partition: TopicPartition, offset: int, error: RetryableError) -> None:
        """Delay `partition`, whose fetch failed."""
        self._failed_at[partition.partition] = offset
        self._delay(partition, error)

    def delay_locked(self, partitions: Iterable[TopicPartition]) -> None:
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

    def _reset(self) -> None:
        self._generation = self._assignment.generation
        for task in self._tasks:
            task.cancel()
        self._reading.clear()
        self._states.clear()
        self._retries.clear()
        self._locked_since.clear()

    async def _verify_positions(self) -> None:
        """Compare positions with the stored offsets, after each new connection and periodically.

        A failover or a restore may have lost commits, and without new records nothing else fails.
        """
        connections, at = self._verified
        positions = self._assignment.positions
        if connections == self._writer.connections and time.monotonic() < at + _VERIFY_INTERVAL:
            return
        stored_positions = await self._writer.stored_positions([p.partition for p in positions])
        for partition, offset in list(positions.items()):
            stored = stored_positions.get(partition.partition)
            if stored is None or stored[:2] != (self._assignment.epochs[partition], offset):
                _log.warning(
                    "stored_offset_moved",
                    partition=partition.partition,
                    offset=offset,
                    stored_offset=None if stored is None else stored.next_offset,
                )
                self._assignment.unseed(partition)
        self._verified = self._writer.connections, time.monotonic()

    async def _apply_log_states(self) -> None:
        """Seed, delay or halt the partitions whose logs were read."""
        self._state_reported.clear()
        states, self._states = self._states, []
        for number, (partition, state) in enumerate(states):
            if self._generation != self._assignment.generation:
                return
            try:
                await self._apply_log_state(partition, self._reading[partition], state)
            except RetryableError:
                self._states += states[number:]
                raise
            del self._reading[partition]

    async def _apply_log_state(
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
            position = await self._begin_partition(number, state)
            if self._generation != self._assignment.generation:
                return
        if (error := log_mismatch(position, state)) is not None:
            self._halt(partition, error)
            return
        self._retries.pop(partition, None)
        self._locked_since.pop(partition, None)
        self._failed_at.pop(number, None)
        self._assignment.seed(partition, position.next_offset, position.epoch)

    async def _begin_partition(self, number: int, state: LogState) -> StoredPosition:
        """Store the beginning of the log as the position of a partition that has none."""
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

    def _halt(self, partition: TopicPartition, error: str) -> None:
        self._assignment.halt(partition, error)
        self._retries[partition] = _Retry(time.monotonic() + _RECHECK_INTERVAL)

    async def _check_locks(self) -> None:
        """End sessions that lock partitions for too long; resume partitions that are unlocked.

        A consumer that is frozen while it stores a batch keeps its locks: none of PostgreSQL's
        timeouts applies to a client in the middle of COPY.
        """
        now = time.monotonic()
        due = [p for p in self._locked_since if self._retries[p].at <= now and self._may_read(p)]
        if not due:
            return
        numbers = await self._writer.locked_partitions([p.partition for p in due])
        locked = [p for p in due if p.partition in numbers]
        for partition in set(due) - set(locked):
            del self._locked_since[partition]
        for partition in locked:
            self._retries[partition] = _Retry(now + _LOCK_INTERVAL)
        late = [p.partition for p in locked if now - self._locked_since[p] >= _LOCK_TIMEOUT]
        if late and (ended := await self._writer.end_lock_holders(late)):
            self._metrics.ended_sessions.inc(len(ended))
            _log.warning("lock_holders_ended", partitions=late, backends=ended)

    async def _start_log_reads(self) -> None:
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
        task = asyncio.create_task(self._read_logs(due))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _may_read(self, partition: TopicPartition) -> bool:
        return partition in self._assignment.assigned and partition not in self._reading

    async def _read_logs(self, partitions: list[TopicPartition]) -> None:
        generation = self._generation
        left = {partition.partition: partition for partition in partitions}

        def report(number: int, state: LogState | RetryableError) -> None:
            partition = left.pop(number)
            if generation == self._generation:
                self._states.append((partition, state))
                self._state_reported.set()

        stored = {partition.partition: self._reading[partition] for partition in partitions}
        failure: RetryableError | None = None
        try:
            await self._read_log(stored, self._failed_at, report)
        except RetryableError as error:
            failure = error
        except Exception as error:
            # Whatever the library raises: a partition without a report would never be tried again.
            _log.exception("log_read_failed", partitions=list(left))
            failure = RetryableError(f"Kafka: {error_text(error)}")
        for number in list(left):
            report(number, failure or RetryableError(f"Kafka: partition {number} gave no answer"))
