"""The loop: fetch a batch, store it in one transaction, go on with the one after it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from execution_events.consumer.assignment import Assignment
from execution_events.consumer.fetcher import BatchFetcher, Fetched
from execution_events.consumer.log import LogState, difference
from execution_events.errors import (
    BatchRefusedError,
    BatchTooSlowError,
    FencedError,
    RetryableError,
)
from execution_events.management import ConsumerMetrics
from execution_events.observability import Logger
from execution_events.projection.batch import DeadLetter, Projection, Refusal
from execution_events.store.batches import Batch, BatchWriter, StoredPosition
from execution_events.wire import REFUSED_BY_DATABASE

_log = Logger(__name__)

_COMMIT_INTERVAL = 5
"""Seconds between commits of offsets to Kafka, which only lag tools read."""
_RECHECK_INTERVAL = 15
"""Seconds between looks at halted partitions."""
_FORGET_INTERVAL = 10
"""Seconds between looks for changes that nobody needs any more."""
_CHANGES_KEPT = timedelta(minutes=10)
"""For how long who watches an execution may be away and go on with the next change."""

ReadLog = Callable[[Mapping[int, StoredPosition | None]], Awaitable[dict[int, LogState]]]
"""Gives the state of the log of each partition."""


class ConsumeLoop:
    """Stores the records of the partitions that one Kafka client is assigned.

    `RetryableError` out of `run` means that the client is of no more use: make another. Whatever
    ends it, each record is stored or will be read again.
    """

    def __init__(
        self,
        client: AIOKafkaConsumer,
        assignment: Assignment,
        fetcher: BatchFetcher,
        writer: BatchWriter,
        metrics: ConsumerMetrics,
        read_log: ReadLog,
        stop: asyncio.Event,
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._fetcher = fetcher
        self._writer = writer
        self._metrics = metrics
        self._read_log = read_log
        self._stop = stop
        self._recheck = time.monotonic() + _RECHECK_INTERVAL
        self._forget = time.monotonic() + _FORGET_INTERVAL * random.uniform(0.5, 1)  # noqa: S311
        self._last_progress = time.monotonic()

    async def run(self) -> None:
        """Fetch and store until `stop` is set; a batch in hand is stored first."""
        committing = asyncio.create_task(self._commit_for_lag_tools())
        fetched: Fetched | None = None
        try:
            while not self._stop.is_set():
                if time.monotonic() >= self._recheck:
                    self._assignment.forget_halts()
                    self._recheck = time.monotonic() + _RECHECK_INTERVAL
                await self._seed()
                self._measure()
                if fetched is None:
                    fetched = await self._fetcher.fetch()
                if fetched is not None:
                    fetched = await self._store_and_fetch(fetched)
                if time.monotonic() >= self._forget:
                    await self._forget_changes()
        finally:
            committing.cancel()
            await asyncio.gather(committing, return_exceptions=True)

    def stalled(self) -> float:
        """Seconds for which records have waited without any being stored; 0 without lag."""
        if any(self._lag(partition) > 0 for partition in self._assignment.positions):
            return time.monotonic() - self._last_progress
        return 0

    async def _seed(self) -> None:
        """Read assigned partitions from their stored offsets; a new one from its beginning."""
        attempt = 0
        while (unseeded := self._assignment.unseeded()) and not self._stop.is_set():
            try:
                await self._seed_partitions(unseeded)
            except RetryableError as error:
                _log.warning("cannot read the stored offsets yet", error=str(error))
                await self._wait_paused(attempt)
                attempt += 1

    async def _seed_partitions(self, partitions: list[TopicPartition]) -> None:
        generation = self._assignment.generation
        numbers = [partition.partition for partition in partitions]
        stored = await self._writer.stored_positions(numbers)
        log = await self._read_log({number: stored.get(number) for number in numbers})
        missing = [number for number in numbers if number not in stored]
        for number in missing:
            state = log[number]
            await self._writer.begin_partition(number, state.begin, state.cluster_id)
        stored |= await self._writer.stored_positions(missing)
        if generation != self._assignment.generation:
            return
        for partition in partitions:
            position = stored[partition.partition]
            reason = difference(position, log[partition.partition])
            if position.next_offset == self._fetcher.unreadable.offsets.get(partition.partition):
                reason = f"the record at offset {position.next_offset} cannot be read"
            if reason is None:
                self._assignment.seed(partition, position.next_offset)
            else:
                self._assignment.halt(partition, reason)

    async def _store_and_fetch(self, fetched: Fetched) -> Fetched | None:
        """Store a batch and meanwhile fetch the one after it, which is given where it comes next.

        It does only where all of `fetched` was stored, by this member and in this generation; its
        records are read again otherwise.
        """
        if fetched.generation != self._assignment.generation:
            # Its partitions are another's, or will be read again from what is stored.
            return None
        if self._fetcher.unreadable.searching:
            # The search goes record by record from what is stored.
            await self._store(fetched)
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
                self._metrics.retries.inc()
                _log.warning("cannot store the batch yet", error=str(error), attempt=attempt)
                if self._stop.is_set():
                    return False
                if isinstance(error, BatchTooSlowError) and len(batch.records) > 1:
                    left[-1:] = reversed(batch.halves())
                await self._wait_paused(attempt)
                attempt += 1
            except FencedError as error:
                self._metrics.fenced.inc()
                _log.warning("batch dropped", reason=str(error), records=len(batch.records))
                self._unseed(fetched.batch)
                return False
            else:
                left.pop()
                self._stored(fetched.generation, batch, projection, time.monotonic() - started)
        # The fetch of the next batch may take a while.
        self._measure()
        return not left

    async def _forget_changes(self) -> None:
        """A part of them between two batches, so that no batch waits for long."""
        more = False
        try:
            more = await self._writer.forget_changes(_CHANGES_KEPT)
        except RetryableError as error:
            _log.warning("cannot forget old changes yet", error=str(error))
        if not more:
            self._forget = time.monotonic() + _FORGET_INTERVAL

    def _stored(
        self, generation: int, batch: Batch, projection: Projection, seconds: float
    ) -> None:
        if generation == self._assignment.generation:
            for partition in self._partitions(batch):
                self._assignment.positions[partition] = batch.moves[partition.partition].next
        letters = len(projection.dead_letters)
        metrics = self._metrics
        metrics.batch_seconds.observe(seconds)
        metrics.records.labels("dead_letter").inc(letters)
        metrics.records.labels("duplicate").inc(projection.duplicates)
        metrics.records.labels("stored").inc(len(batch.records) - letters - projection.duplicates)
        metrics.sequence_gaps.inc(projection.gaps)
        metrics.without_key.inc(projection.without_key)
        metrics.last_progress.set_to_current_time()
        self._last_progress = time.monotonic()
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
        end: int = self._client.last_stable_offset(partition) or 0
        return max(0, end - self._assignment.positions[partition])

    def _measure(self) -> None:
        """Tell of the partitions of this member, and forget those that others have now."""
        lags = {p.partition: self._lag(p) for p in self._assignment.positions}
        self._metrics.lag.clear()
        for partition, lag in lags.items():
            self._metrics.lag.labels(partition).set(lag)
        self._metrics.halted.clear()
        for assigned in self._assignment.assigned:
            is_halted = assigned in self._assignment.halted
            self._metrics.halted.labels(assigned.partition).set(is_halted)
        if not any(lags.values()):
            # Where nothing waits, time does not count as a stall.
            self._last_progress = time.monotonic()


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


def backoff(attempt: int) -> float:
    """Seconds to wait after failure number `attempt`, counted from 0: up to 5, with jitter."""
    return min(0.1 * float(2 ** min(attempt, 10)), 5) * random.uniform(0.5, 1)  # noqa: S311
