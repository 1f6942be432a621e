"""The loop: fetch a batch, store it in one transaction, go on from where it ended."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from execution_events.consumer.assignment import Assignment
from execution_events.consumer.log import LogState, difference
from execution_events.errors import (
    BatchRefusedError,
    BatchTooSlowError,
    FencedError,
    RetryableError,
)
from execution_events.management import ConsumerMetrics
from execution_events.observability import Logger
from execution_events.projection.batch import DeadLetter, Projection, ReadRecord, Refusal, read
from execution_events.store.batches import Batch, BatchWriter, Move, Reach, StoredPosition
from execution_events.wire import REFUSED_BY_DATABASE

_log = Logger(__name__)

_POLL_MS = 250
"""How long a fetch waits for the first record."""
_SLICE = 250
"""Records that are fetched and read at a stretch: 1 ms, and few enough for a processor's cache."""
_KEEP_TIME = 60
"""Seconds for which records are kept after one that the database refused."""
_COMMIT_INTERVAL = 5
"""Seconds between commits of offsets to Kafka, which only lag tools read."""
_SEARCH_TIME = 60
"""Seconds for which a record that cannot be read is searched for."""
_RECHECK_INTERVAL = 15
"""Seconds between looks at halted partitions."""
_FORGET_INTERVAL = 10
"""Seconds between looks for changes that nobody needs any more."""
_CHANGES_KEPT = timedelta(minutes=10)
"""For how long who watches an execution may be away and go on with the next change."""

ReadLog = Callable[[Mapping[int, StoredPosition | None]], Awaitable[dict[int, LogState]]]
"""Gives the state of the log of each partition."""


class _Fetched(NamedTuple):
    generation: int
    batch: Batch


class UnreadableError(RetryableError):
    """Make another client: this one met a record that its library cannot read."""


class Unreadable:
    """Records that the Kafka library cannot read, over the life of several clients.

    Its exception tells neither partition nor offset and spoils the client. So the next client
    searches for a while: it fetches partition by partition and record by record, which stores all
    that comes before, and the one after it halts the partition there.
    """

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}
        self._deadline = 0.0

    @property
    def searching(self) -> bool:
        return time.monotonic() < self._deadline

    def search(self) -> None:
        """Search from now on, as far as it comes in a minute."""
        self._deadline = time.monotonic() + _SEARCH_TIME

    def found(self, partition: int, offset: int) -> None:
        """The record of `partition` at `offset` or the next is the one."""
        self._deadline = 0.0
        self.offsets[partition] = offset


class ConsumeLoop:
    """Stores the records of the partitions that one Kafka client is assigned.

    `RetryableError` out of `run` means that the client is of no more use: make another. Whatever
    ends it, each record is stored or will be read again.
    """

    def __init__(
        self,
        client: AIOKafkaConsumer,
        assignment: Assignment,
        writer: BatchWriter,
        metrics: ConsumerMetrics,
        read_log: ReadLog,
        unreadable: Unreadable,
        batch_max_records: int,
        stop: asyncio.Event,
        reach: Reach,
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._writer = writer
        self._metrics = metrics
        self._read_log = read_log
        self._unreadable = unreadable
        self._batch_max_records = batch_max_records
        self._stop = stop
        self._reach = reach
        self._recheck = time.monotonic() + _RECHECK_INTERVAL
        self._forget = time.monotonic() + _FORGET_INTERVAL * random.uniform(0.5, 1)  # noqa: S311
        self._last_progress = time.monotonic()
        self._keep_until = 0.0

    async def run(self) -> None:
        """Fetch and store until `stop` is set; a batch in hand is stored first."""
        committing = asyncio.create_task(self._commit_for_lag_tools())
        fetched: _Fetched | None = None
        try:
            while not self._stop.is_set():
                if time.monotonic() >= self._recheck:
                    self._assignment.forget_halts()
                    self._recheck = time.monotonic() + _RECHECK_INTERVAL
                await self._seed()
                self._measure()
                if fetched is None:
                    fetched = await self._fetch()
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
            if position.next_offset == self._unreadable.offsets.get(partition.partition):
                reason = f"the record at offset {position.next_offset} cannot be read"
            if reason is None:
                self._assignment.seed(partition, position.next_offset)
            else:
                self._assignment.halt(partition, reason)

    async def _store_and_fetch(self, fetched: _Fetched) -> _Fetched | None:
        """Store a batch and meanwhile fetch the one after it, which is given where it comes next.

        It does only where all of `fetched` was stored, by this member and in this generation; its
        records are read again otherwise.
        """
        if fetched.generation != self._assignment.generation:
            # Its partitions are another's, or will be read again from what is stored.
            return None
        if self._unreadable.searching:
            # The search goes record by record from what is stored.
            await self._store(fetched)
            return None
        storing = asyncio.create_task(self._store(fetched))
        try:
            try:
                following = await self._fetch(fetched.batch)
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

    async def _fetch(self, ahead: Batch | None = None) -> _Fetched | None:
        """The next batch; after `ahead`, which is being stored, where that is given."""
        generation = self._assignment.generation
        records = await self._read()
        self._reach("fetched")
        if generation != self._assignment.generation:
            return None
        moves: dict[int, Move] = {}
        # A position moves without a record over control records and aborted transactions.
        for partition, stored in self._assignment.positions.items():
            if ahead is not None and partition.partition in ahead.moves:
                stored = ahead.moves[partition.partition].next
            position = await self._client.position(partition)
            if position != stored:
                moves[partition.partition] = Move(stored, position)
        if not moves:
            return None
        return _Fetched(
            generation, Batch([r for p in sorted(moves) for r in records.get(p, ())], moves)
        )

    async def _read(self) -> dict[int, list[ReadRecord]]:
        """Fetch and read records by partition: what there is, up to a batch.

        In slices, so that a round trip of the batch that is being stored waits for one of them at
        most. The last of a slice is kept, as a record that tells the log from another.
        """
        read_records: dict[int, list[ReadRecord]] = {}
        left = self._batch_max_records
        wait = _POLL_MS
        while left > 0:
            keep = time.monotonic() < self._keep_until
            polled = await self._poll(wait, min(left, _SLICE))
            for partition, records in polled.items():
                *most, last = records
                read_records.setdefault(partition.partition, []).extend(
                    [*(read(record, keep) for record in most), read(last)]
                )
                left -= len(records)
            if not polled or self._unreadable.searching:
                break
            wait = 0
            await asyncio.sleep(0)
        return read_records

    async def _store(self, fetched: _Fetched) -> bool:
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
                    self._keep_until = time.monotonic() + _KEEP_TIME
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

    async def _poll(
        self, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Fetch what there is; nothing once `stop` is set."""
        if not self._unreadable.searching:
            return await self._getmany(timeout_ms=timeout_ms, max_records=max_records)
        records: dict[TopicPartition, list[ConsumerRecord]] = {}
        for partition, position in list(self._assignment.positions.items()):
            try:
                records |= await self._getmany(partition, timeout_ms=0, max_records=1)
            except UnreadableError:
                self._unreadable.found(partition.partition, position)
                raise
        return records or await self._getmany(timeout_ms=timeout_ms, max_records=1)

    async def _getmany(
        self, *partitions: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        polling = asyncio.create_task(
            self._client.getmany(*partitions, timeout_ms=timeout_ms, max_records=max_records)
        )
        stopping = asyncio.create_task(self._stop.wait())
        try:
            # A rebalance holds getmany for as long as it takes. To cancel it spoils the client,
            # like an exception through it (both turn max.poll.interval off for good): it is done
            # only where the client ends too.
            await asyncio.wait({polling, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not polling.done():
                return {}
            if polling.cancelled():
                # By the client itself, after it has left its group.
                raise RetryableError("Kafka: the client has cancelled a fetch")
            records: dict[TopicPartition, list[ConsumerRecord]] = polling.result()
            return records
        except RetryableError:
            raise
        except KafkaError as error:
            raise RetryableError(f"Kafka: {type(error).__name__}: {error}") from error
        except Exception as error:
            self._unreadable.search()
            raise UnreadableError(f"a record cannot be read: {type(error).__name__}") from error
        finally:
            for task in (polling, stopping):
                task.cancel()

    async def _wait_paused(self, attempt: int) -> None:
        """Back off with all partitions paused, polling so that the group keeps this member."""
        deadline = time.monotonic() + backoff(attempt)
        self._client.pause(*self._assignment.positions)
        while time.monotonic() < deadline and not self._stop.is_set():
            await self._poll(_POLL_MS, _SLICE)
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
