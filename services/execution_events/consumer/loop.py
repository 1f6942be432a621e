"""The consume loop: store a batch in one transaction while the next one is fetched."""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import timedelta

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from execution_events.backoff import backoff
from execution_events.consumer.assignment import Assignment
from execution_events.consumer.fetcher import BatchFetcher, FetchedBatch
from execution_events.consumer.seeder import Seeder
from execution_events.errors import (
    BatchRefusedError,
    BatchTooSlowError,
    FencedError,
    PartitionsLockedError,
    RetryableError,
)
from execution_events.kafka.consumer import PartitionedConsumer
from execution_events.kafka.errors import kafka_error
from execution_events.logs import Logger
from execution_events.metrics import ConsumerMetrics
from execution_events.projection.batch import DeadLetter, Projection, Refusal
from execution_events.store.write.batches import Batch, BatchWriter
from execution_events.wire import REFUSED_BY_DATABASE

_log = Logger(__name__)

_COMMIT_INTERVAL = 5
"""Seconds between commits of offsets to Kafka, which only lag monitors read."""
_PURGE_INTERVAL = 10
"""Seconds between deletions of old changes and rates."""
_CHANGES_RETENTION = timedelta(minutes=10)
"""Longest interruption after which a watcher can resume at the next change."""
_UNSEEDED_POLL_INTERVAL = 0.1
"""Seconds between polls that keep this member in its group while no partition is seeded."""

EndOffset = Callable[[int], int]
"""Returns the end of a partition's log as last reported by its leader, 0 if unknown."""


class ConsumeLoop:
    """A loop that stores the records of the partitions assigned to one Kafka client.

    `RetryableError` out of `run` means that the client has failed and must be replaced. However it
    ends, each record is stored or will be read again.
    """

    def __init__(
        self,
        client: PartitionedConsumer,
        assignment: Assignment,
        fetcher: BatchFetcher,
        seeder: Seeder,
        writer: BatchWriter,
        metrics: ConsumerMetrics,
        end_offset: EndOffset,
        stop: asyncio.Event,
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._fetcher = fetcher
        self._seeder = seeder
        self._writer = writer
        self._metrics = metrics
        self._end_offset = end_offset
        self._stop = stop
        self._purge_at = time.monotonic() + _PURGE_INTERVAL * random.uniform(0.5, 1)  # noqa: S311
        self._lagging_since: dict[TopicPartition, float] = {}
        self._failures = 0
        self._advance_at = 0.0
        self.problem: str | None = None
        """The last error of PostgreSQL, None after the next success."""

    async def run(self) -> None:
        """Fetch and store until `stop` is set; a fetched batch is stored first."""
        committing = asyncio.create_task(self._commit_for_lag_monitors())
        fetched: FetchedBatch | None = None
        try:
            while not self._stop.is_set():
                self._handle_partition_errors()
                await self._advance()
                self._update_lag()
                if not self._assignment.positions and fetched is None:
                    await self._seeder.wait(_UNSEEDED_POLL_INTERVAL)
                    await self._fetcher.poll(timeout_ms=0)
                    continue
                if fetched is None:
                    fetched = await self._fetcher.fetch()
                if fetched is not None:
                    fetched = await self._store_and_fetch(fetched)
                if time.monotonic() >= self._purge_at:
                    await self._purge()
        finally:
            committing.cancel()
            await asyncio.gather(committing, self._seeder.close(), return_exceptions=True)

    def stalled(self) -> dict[int, float]:
        """Return the seconds without progress of each partition that has lag."""
        now = time.monotonic()
        return {
            partition.partition: now - self._lagging_since.setdefault(partition, now)
            for partition in self._assignment.positions
            if self._lag(partition) > 0
        }

    def _handle_partition_errors(self) -> None:
        """Delay or halt each partition whose fetch or batch has failed."""
        for partition, error in list(self._client.partition_errors.items()):
            position = self._assignment.positions.get(partition)
            if position is None:
                continue
            if error.offset is None:
                text = f"partition {partition.partition}: {error.text}"
                self._seeder.delay_failed(
                    partition, position, kafka_error(self._client.address, text, error.cause)
                )
            elif error.offset == position:
                self._seeder.halt_unreadable(partition, position, error.text)

    async def _advance(self) -> None:
        """Advance the seeding; back off after an error of PostgreSQL."""
        if time.monotonic() < self._advance_at:
            return
        try:
            await self._seeder.advance()
        except RetryableError as error:
            self._record_failure("stored_offsets_unavailable", error, self._failures)
            self._advance_at = time.monotonic() + backoff(self._failures)
            self._failures += 1
        else:
            self._failures = 0
            self.problem = None

    def _record_failure(self, event: str, error: RetryableError, attempt: int) -> None:
        self.problem = str(error)
        self._metrics.retries.labels(error.cause).inc()
        _log.warning(event, error=str(error), attempt=attempt)

    async def _store_and_fetch(self, fetched: FetchedBatch) -> FetchedBatch | None:
        """Store a batch while the following one is fetched; return that one, or None.

        The following batch is valid only if all of `fetched` was stored, by this member and in this
        generation. Otherwise its records are read again.
        """
        if fetched.generation != self._assignment.generation:
            # Its partitions belong to another member, or are read again from the stored offsets.
            return None
        storing = asyncio.create_task(self._store(fetched))
        try:
            try:
                following = await self._fetcher.fetch(fetched.batch, storing)
            except RetryableError:
                # The client has failed; the fetched batch is still stored.
                await storing
                raise
            is_stored = await storing
        finally:
            if not storing.done():
                storing.cancel()
                await asyncio.gather(storing, return_exceptions=True)
        if is_stored or following is None:
            return following
        if following.generation == self._assignment.generation:
            self._unseed(following.batch)
        return None

    async def _store(self, fetched: FetchedBatch) -> bool:
        """Store a batch, with retries; return True if this member has stored all of it."""
        attempt = 0
        complete = True
        # Batches still to store, the next one last; a refused batch is replaced by its halves.
        left = [fetched.batch]
        # The partitions of an earlier generation may belong to another member.
        while left and fetched.generation == self._assignment.generation:
            batch = left[-1]
            started = time.monotonic()
            try:
                projection = await self._writer.store(batch)
            except BatchRefusedError as error:
                if not (replacements := _replacements(batch, error)):
                    # The record is read again, and retained this time.
                    self._fetcher.retain_records()
                    self._unseed(fetched.batch)
                    return False
                left[-1:] = replacements
            except RetryableError as error:
                self._record_failure("batch_not_stored", error, attempt)
                if self._stop.is_set():
                    return False
                if isinstance(error, BatchTooSlowError) and len(batch.records) > 1:
                    left[-1:] = reversed(batch.halves())
                await self._wait_paused(attempt)
                attempt += 1
            except FencedError as error:
                self._metrics.fenced.inc()
                _log.warning("batch_fenced", error=str(error), records=len(batch.records))
                self._unseed(fetched.batch)
                return False
            except PartitionsLockedError as error:
                self._seeder.delay_locked(
                    [p for p in self._partitions(batch) if p.partition in error.partitions]
                )
                left = [rest for part in left if (rest := part.without(error.partitions)).moves]
                complete = False
            else:
                self.problem = None
                left.pop()
                seconds = time.monotonic() - started
                self._record_stored(fetched.generation, batch, projection, seconds)
        # The fetch of the next batch may take long.
        self._update_lag()
        return complete and not left

    async def _purge(self) -> None:
        """Delete some old changes and rates between two batches, so that no batch waits long."""
        more = False
        try:
            more = await self._writer.purge_changes(_CHANGES_RETENTION)
            await self._writer.purge_rates()
        except RetryableError as error:
            self._record_failure("purge_failed", error, 0)
        if not more:
            self._purge_at = time.monotonic() + _PURGE_INTERVAL

    def _record_stored(
        self, generation: int, batch: Batch, projection: Projection, seconds: float
    ) -> None:
        if generation == self._assignment.generation:
            for partition in self._partitions(batch):
                self._assignment.positions[partition] = batch.moves[partition.partition].next
                self._lagging_since.pop(partition, None)
        letters = len(projection.dead_letters)
        metrics = self._metrics
        metrics.batch_seconds.observe(seconds)
        metrics.records.labels("dead_letter").inc(letters)
        metrics.records.labels("duplicate").inc(projection.duplicates)
        metrics.records.labels("stored").inc(len(batch.records) - letters - projection.duplicates)
        metrics.sequence_gaps.inc(projection.gaps)
        metrics.without_key.inc(projection.without_key)
        metrics.last_progress.set_to_current_time()
        for letter in projection.dead_letters:
            _log.warning(
                "record_refused",
                partition=letter.record.partition,
                offset=letter.record.offset,
                reason=letter.refusal.reason,
                detail=letter.refusal.detail,
            )
        _log.debug("batch_stored", records=len(batch.records), seconds=round(seconds, 4))

    def _partitions(self, batch: Batch) -> list[TopicPartition]:
        return [p for p in self._assignment.positions if p.partition in batch.moves]

    def _unseed(self, batch: Batch) -> None:
        for partition in self._partitions(batch):
            self._assignment.unseed(partition)

    async def _wait_paused(self, attempt: int) -> None:
        """Back off with all partitions paused; poll, so that the group keeps this member."""
        deadline = time.monotonic() + backoff(attempt)
        self._client.pause(*self._assignment.positions)
        while time.monotonic() < deadline and not self._stop.is_set():
            await self._fetcher.poll()
        self._client.resume(*self._assignment.positions)

    async def _commit_for_lag_monitors(self) -> None:
        committed: dict[TopicPartition, int] = {}
        while True:
            await asyncio.sleep(_COMMIT_INTERVAL)
            positions = dict(self._assignment.positions)
            if positions and positions != committed:
                try:
                    await self._client.commit(positions)
                    committed = positions
                except (KafkaError, IllegalStateError) as error:
                    _log.debug("offset_commit_failed", error=str(error))

    def _lag(self, partition: TopicPartition) -> int:
        # The client's own value does not change while the leader is unavailable.
        end = max(
            self._client.last_stable_offset(partition) or 0,
            self._end_offset(partition.partition),
        )
        return max(0, end - self._assignment.positions[partition])

    def _update_lag(self) -> None:
        """Update lag and gauges of this member's partitions; drop those of other members."""
        now = time.monotonic()
        lags = {p: self._lag(p) for p in self._assignment.positions}
        # Without lag, time does not count as a stall.
        self._lagging_since = {
            p: self._lagging_since.get(p, now) for p, lag in lags.items() if lag > 0
        }
        self._metrics.lag.clear()
        for partition, lag in lags.items():
            self._metrics.lag.labels(partition.partition).set(lag)
        self._metrics.halted.clear()
        for assigned in self._assignment.assigned:
            is_halted = assigned in self._assignment.halted
            self._metrics.halted.labels(assigned.partition).set(is_halted)


def _replacements(batch: Batch, error: BatchRefusedError) -> list[Batch]:
    """Return the batches to store in place of a refused one, the next one last.

    A single record becomes a dead letter; none can be made of a record that was not retained.
    """
    if len(batch.records) > 1:
        return [*reversed(batch.halves())]
    [refused] = batch.records
    if refused.record is None:
        return []
    letter = DeadLetter(refused.record, Refusal(REFUSED_BY_DATABASE, error.detail))
    return [Batch([msgspec.structs.replace(refused, outcome=letter)], batch.moves)]
