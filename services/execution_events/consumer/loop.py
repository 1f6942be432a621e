"""The loop: fetch a batch, store it in one transaction, go on with the one after it."""

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
from execution_events.consumer.fetcher import BatchFetcher, Fetched
from execution_events.consumer.seeding import Seeder
from execution_events.errors import (
    BatchRefusedError,
    BatchTooSlowError,
    FencedError,
    PartitionsLockedError,
    RetryableError,
)
from execution_events.kafka.consumer import Client
from execution_events.logs import Logger
from execution_events.metrics import ConsumerMetrics
from execution_events.projection.batch import DeadLetter, Projection, Refusal
from execution_events.store.write.batches import Batch, BatchWriter
from execution_events.wire import REFUSED_BY_DATABASE

_log = Logger(__name__)

_COMMIT_INTERVAL = 5
"""Seconds between commits of offsets to Kafka, which only lag tools read."""
_FORGET_INTERVAL = 10
"""Seconds between looks for changes that nobody needs any more."""
_CHANGES_KEPT = timedelta(minutes=10)
"""For how long who watches an execution may be away and go on with the next change."""
_NOTHING_SEEDED = 0.1
"""Seconds between polls that keep this member in its group while it has nothing to read."""

EndOffset = Callable[[int], int]
"""Returns the end of a partition's log as its leader last reported it; 0 before that."""


class ConsumeLoop:
    """Stores the records of the partitions that one Kafka client is assigned.

    `RetryableError` out of `run` means that the client is of no more use: make another. Whatever
    ends it, each record is stored or will be read again.
    """

    def __init__(
        self,
        client: Client,
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
        self._forget = time.monotonic() + _FORGET_INTERVAL * random.uniform(0.5, 1)  # noqa: S311
        self._waiting_since: dict[TopicPartition, float] = {}
        self._failures = 0
        self._advance_at = 0.0
        self.problem: str | None = None
        """The last error of PostgreSQL, None once it has taken something."""

    async def run(self) -> None:
        """Fetch and store until `stop` is set; a batch in hand is stored first."""
        committing = asyncio.create_task(self._commit_for_lag_tools())
        fetched: Fetched | None = None
        try:
            while not self._stop.is_set():
                self._note_troubles()
                await self._advance()
                self._measure()
                if not self._assignment.positions and fetched is None:
                    await self._seeder.wait(_NOTHING_SEEDED)
                    await self._fetcher.poll(timeout_ms=0)
                    continue
                if fetched is None:
                    fetched = await self._fetcher.fetch()
                if fetched is not None:
                    fetched = await self._store_and_fetch(fetched)
                if time.monotonic() >= self._forget:
                    await self._forget_changes()
        finally:
            committing.cancel()
            await asyncio.gather(committing, self._seeder.close(), return_exceptions=True)

    def stalled(self) -> dict[int, float]:
        """Return, by partition with lag, the seconds since it last moved."""
        now = time.monotonic()
        return {
            partition.partition: now - self._waiting_since.setdefault(partition, now)
            for partition in self._assignment.positions
            if self._lag(partition) > 0
        }

    def _note_troubles(self) -> None:
        """Delay or halt the partitions that the client has trouble with."""
        for partition, trouble in list(self._client.troubles.items()):
            position = self._assignment.positions.get(partition)
            if position is None:
                continue
            if trouble.offset is None:
                text = f"Kafka at {self._client.address}: partition {partition.partition}"
                error = RetryableError(f"{text}: {trouble.text}", trouble.cause)
                self._seeder.found_refused(partition, position, error)
            elif trouble.offset == position:
                self._seeder.found_unreadable(partition, position, trouble.text)

    async def _advance(self) -> None:
        """Advance the seeding; after an error of PostgreSQL, try again later."""
        if time.monotonic() < self._advance_at:
            return
        try:
            await self._seeder.advance()
        except RetryableError as error:
            self._failed("stored_offsets_unavailable", error, self._failures)
            self._advance_at = time.monotonic() + backoff(self._failures)
            self._failures += 1
        else:
            self._failures = 0
            self.problem = None

    def _failed(self, event: str, error: RetryableError, attempt: int) -> None:
        self.problem = str(error)
        self._metrics.retries.labels(error.cause).inc()
        _log.warning(event, error=str(error), attempt=attempt)

    async def _store_and_fetch(self, fetched: Fetched) -> Fetched | None:
        """Store a batch and meanwhile fetch the one after it, which is given where it comes next.

        It does only where all of `fetched` was stored, by this member and in this generation; its
        records are read again otherwise.
        """
        if fetched.generation != self._assignment.generation:
            # Its partitions are another's, or will be read again from what is stored.
            return None
        storing = asyncio.create_task(self._store(fetched))
        try:
            try:
                following = await self._fetcher.fetch(fetched.batch)
            except RetryableError:
                # The client is of no more use; the batch in hand is still stored.
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

    async def _store(self, fetched: Fetched) -> bool:
        """Store a batch, whatever it takes; whether this member has stored all of it."""
        attempt = 0
        complete = True
        # What is left to store, in order from the end: a batch that is refused becomes its halves.
        left = [fetched.batch]
        # A batch of an earlier generation is another member's now.
        while left and fetched.generation == self._assignment.generation:
            batch = left[-1]
            started = time.monotonic()
            try:
                projection = await self._writer.store(batch)
            except BatchRefusedError as error:
                if not (parts := _parts(batch, error)):
                    # It is read again, and kept this time.
                    self._fetcher.keep_records()
                    self._unseed(fetched.batch)
                    return False
                left[-1:] = parts
            except RetryableError as error:
                self._failed("batch_not_stored", error, attempt)
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
                self._seeder.found_locked(
                    [p for p in self._partitions(batch) if p.partition in error.partitions]
                )
                left = [rest for part in left if (rest := part.without(error.partitions)).moves]
                complete = False
            else:
                self.problem = None
                left.pop()
                self._stored(fetched.generation, batch, projection, time.monotonic() - started)
        # The fetch of the next batch may take a while.
        self._measure()
        return complete and not left

    async def _forget_changes(self) -> None:
        """A part of them between two batches, so that no batch waits for long."""
        more = False
        try:
            more = await self._writer.forget_changes(_CHANGES_KEPT)
        except RetryableError as error:
            self._failed("changes_not_forgotten", error, 0)
        if not more:
            self._forget = time.monotonic() + _FORGET_INTERVAL

    def _stored(
        self, generation: int, batch: Batch, projection: Projection, seconds: float
    ) -> None:
        if generation == self._assignment.generation:
            for partition in self._partitions(batch):
                self._assignment.positions[partition] = batch.moves[partition.partition].next
                self._waiting_since.pop(partition, None)
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
                "record refused",
                partition=letter.record.partition,
                offset=letter.record.offset,
                reason=letter.refusal.reason,
                detail=letter.refusal.detail,
            )
        _log.debug("batch stored", records=len(batch.records), seconds=round(seconds, 4))

    def _partitions(self, batch: Batch) -> list[TopicPartition]:
        return [p for p in self._assignment.positions if p.partition in batch.moves]

    def _unseed(self, batch: Batch) -> None:
        for partition in self._partitions(batch):
            self._assignment.unseed(partition)

    async def _wait_paused(self, attempt: int) -> None:
        """Back off with all partitions paused, polling so that the group keeps this member."""
        deadline = time.monotonic() + backoff(attempt)
        self._client.pause(*self._assignment.positions)
        while time.monotonic() < deadline and not self._stop.is_set():
            await self._fetcher.poll()
        self._client.resume(*self._assignment.positions)

    async def _commit_for_lag_tools(self) -> None:
        committed: dict[TopicPartition, int] = {}
        while True:
            await asyncio.sleep(_COMMIT_INTERVAL)
            positions = dict(self._assignment.positions)
            if positions and positions != committed:
                try:
                    await self._client.commit(positions)
                    committed = positions
                except (KafkaError, IllegalStateError) as error:
                    _log.debug("offsets not committed to Kafka", error=str(error))

    def _lag(self, partition: TopicPartition) -> int:
        # The client's own figure keeps its last value while the leader is frozen or gone.
        end = max(
            self._client.last_stable_offset(partition) or 0,
            self._end_offset(partition.partition),
        )
        return max(0, end - self._assignment.positions[partition])

    def _measure(self) -> None:
        """Tell of the partitions of this member, and forget those that others have now."""
        now = time.monotonic()
        lags = {p: self._lag(p) for p in self._assignment.positions}
        # Where nothing waits, time does not count as a stall.
        self._waiting_since = {
            p: self._waiting_since.get(p, now) for p, lag in lags.items() if lag > 0
        }
        self._metrics.lag.clear()
        for partition, lag in lags.items():
            self._metrics.lag.labels(partition.partition).set(lag)
        self._metrics.halted.clear()
        for assigned in self._assignment.assigned:
            is_halted = assigned in self._assignment.halted
            self._metrics.halted.labels(assigned.partition).set(is_halted)


def _parts(batch: Batch, error: BatchRefusedError) -> list[Batch]:
    """What to store in place of a refused batch, in order from the end; nothing in place of a
    record that was not kept."""
    if len(batch.records) > 1:
        return [*reversed(batch.halves())]
    [refused] = batch.records
    if refused.record is None:
        return []
    letter = DeadLetter(refused.record, Refusal(REFUSED_BY_DATABASE, error.detail))
    return [Batch([msgspec.structs.replace(refused, outcome=letter)], batch.moves)]
