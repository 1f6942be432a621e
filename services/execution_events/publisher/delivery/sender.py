"""Records to Kafka: in order within each partition, each until it is acknowledged."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from math import inf

import msgspec
from aiokafka.errors import (
    InvalidTimestampError,
    ProducerClosed,
    TopicAuthorizationFailedError,
)
from aiokafka.partitioner import murmur2

from execution_events import wire
from execution_events.backoff import backoff
from execution_events.clock import now_ms
from execution_events.errors import RetryableError
from execution_events.kafka.errors import error_text
from execution_events.kafka.producer import NOT_APPENDED, TOO_LARGE
from execution_events.logs import Logger
from execution_events.publisher.delivery.connection import KafkaConnection
from execution_events.publisher.delivery.task import RestartingTask
from execution_events.publisher.record import HOLD_MS, PendingRecord
from execution_events.settings import KafkaSettings

_log = Logger(__name__)

_BATCH_RECORDS = 10_000
_DELIVERY_TIMEOUT = 60
"""Seconds without an acknowledgement after which a producer is replaced."""
_REPORT_INTERVAL = 60
"""Seconds between two log lines about partitions blocked by the same error."""
EVERY_PARTITION = -1
"""The key of an error that blocks all partitions."""

_murmur2 = lru_cache(maxsize=4096)(murmur2)


class Acknowledged(msgspec.Struct, frozen=True, gc=False):
    """The position of a record in the log; the offset is -1 if the broker did not report it."""

    partition: int
    offset: int


def _ignore(partition: int) -> None:
    pass


class Sender:
    """The sender of one source's records.

    Each partition has one batch in flight; the next is sent when that is acknowledged. A batch
    that is sent again, also by a new producer, is therefore in the log before any later record of
    its source: every further copy is at or below the source's watermark and does not count. A
    record gets a new Kafka timestamp with every attempt.

    Kafka refuses a record permanently only if that record alone is too large. Every other refusal
    is caused by the environment: it blocks its partition, which is retried, and no other.

    `acknowledged(records, partition, base_offset)`, `refused(record, detail)` and `expired(record)`
    are called in the event loop, one of them once for each record; `expired` for a record that was
    first attempted more than `HOLD_MS` ago and is no longer sent. `blocked(partition)` is called
    after each failed attempt; it may call `withdraw`, except for `EVERY_PARTITION`.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        source: str,
        *,
        acknowledged: Callable[[Sequence[PendingRecord], int, int], None],
        refused: Callable[[PendingRecord, str], None],
        expired: Callable[[PendingRecord], None],
        blocked: Callable[[int], None] = _ignore,
    ) -> None:
        self._connection = KafkaConnection(settings, self._on_unavailable)
        self._topic = settings.topic
        self._source = source
        self._acknowledged = acknowledged
        self._refused = refused
        self._expired = expired
        self._blocked = blocked
        self._reported: dict[int, tuple[type[Exception], float]] = {}
        self._logged: dict[type[Exception], float] = {}
        self._queues: dict[int, _PartitionQueue] = {}
        self.pending = 0
        """Number of records submitted and not yet acknowledged, refused, expired or withdrawn."""
        self.errors: dict[int, str] = {}
        """The last error of each blocked partition, and of `EVERY_PARTITION` without Kafka."""

    @property
    def partitions(self) -> int:
        """The number of partitions of the topic; 0 until Kafka has been reached."""
        return self._connection.partitions

    @property
    def oldest(self) -> int | None:
        """The lowest pending sequence, None if nothing is pending."""
        heads = (queue.records[0].sequence for queue in self._queues.values() if queue.records)
        return min(heads, default=None)

    @property
    def pending_by_partition(self) -> Iterator[tuple[int, Iterable[PendingRecord]]]:
        """Each partition with its pending records, in order."""
        return ((partition, queue.records) for partition, queue in self._queues.items())

    def error(self, partition: int) -> str | None:
        """Return the error that blocks `partition`, None if nothing does."""
        return self.errors.get(partition, self.errors.get(EVERY_PARTITION))

    def partition_of(self, key: bytes) -> int:
        """Return the partition of `key` by Java's murmur2; `partitions` must be known."""
        return int(_murmur2(key) & 0x7FFFFFFF) % self._connection.partitions

    def submit(self, record: PendingRecord) -> None:
        """Send `record` after all that was submitted to its partition before.

        Not to be called after `close`.
        """
        partition = record.partition
        queue = self._queues.get(partition)
        if queue is None:
            queue = self._queues[partition] = _PartitionQueue(self, partition)
        self.pending += 1
        queue.append(record)

    async def connect(self) -> None:
        """Connect once, so that `partitions` is known; raise `RetryableError` without Kafka."""
        await self._connection.open()

    async def until_connected(self) -> None:
        """Connect, however long it takes."""
        await self._connection.producer()
        self.errors.pop(EVERY_PARTITION, None)

    async def close(self) -> None:
        """Stop sending within 4 s; pending records may or may not be in the log."""
        # Each ends within moments of its cancellation: none waits for Kafka then.
        await asyncio.gather(*(queue.stop() for queue in self._queues.values()))
        await self._connection.close()

    def withdraw(self, partition: int) -> list[PendingRecord]:
        """Remove and return the records of a blocked partition, except the first.

        The first finds out when the partition works again.
        """
        records = self._queues[partition].records
        withdrawn = list(islice(records, 1, None))
        for _ in withdrawn:
            records.pop()
        self.pending -= len(withdrawn)
        return withdrawn

    async def send(
        self, records: Sequence[PendingRecord], partition: int, limit: int
    ) -> tuple[int, int, Exception | None]:
        """Send one batch of at most the first `limit` of `records`.

        Returns the number of records in the batch, its base offset, and the error if it failed:
        one of `TOO_LARGE`, or one after which the batch may or may not be in the log.
        """
        producer = await self._connection.producer()
        self.errors.pop(EVERY_PARTITION, None)
        count = 0
        try:
            await self._connection.check_partition(producer, partition)
            timestamp = now_ms()
            batch = producer.create_batch()
            append, encode_headers = batch.append, wire.encode_headers
            for record in islice(records, limit):
                headers = encode_headers(self._source, record.sequence, record.traceparent)
                if not append(
                    timestamp=timestamp, key=record.key, value=record.value, headers=headers
                ):
                    break
                count += 1
            async with asyncio.timeout(_DELIVERY_TIMEOUT):
                sent = await producer.send_batch(batch, self._topic, partition=partition)
                return count, (await sent).offset, None
        except Exception as error:
            # No error, not even a fault of the library, is a reason to give up a record.
            if not isinstance(error, (*NOT_APPENDED, RetryableError)):
                await self._connection.replace(producer, error)
            return count, -1, error

    def limit_batches(self, size: int) -> None:
        """Limit all further batches to `size` bytes of keys and values."""
        self._connection.limit_batches(size)

    # Outcomes, reported by the queues.

    def settle_acknowledged(
        self, records: Sequence[PendingRecord], partition: int, base: int
    ) -> None:
        """Report records that are in the log."""
        self.pending -= len(records)
        self._acknowledged(records, partition, base)

    def settle_refused(self, record: PendingRecord, error: Exception) -> None:
        """Report a record that Kafka will never accept."""
        self.pending -= 1
        self._refused(record, f"Kafka refuses the record: {type(error).__name__}")

    def settle_expired(self, record: PendingRecord) -> None:
        """Report a record whose first attempt was too long ago."""
        self.pending -= 1
        self._expired(record)

    def block(self, partition: int, error: Exception) -> None:
        """Report a failed attempt; the same error is logged once a minute."""
        kind, now = type(error), asyncio.get_running_loop().time()
        # Some texts differ with every attempt; the stored one need not follow them.
        reported, at = self._reported.get(partition, (None, now))
        if reported is not kind or at <= now - _REPORT_INTERVAL:
            self._reported[partition] = kind, now
            self.errors[partition] = self._text(error)
        # The replacement of a producer has been logged already, for all partitions.
        recent = self._logged.get(kind, -inf) > now - _REPORT_INTERVAL
        if not recent and kind is not ProducerClosed:
            self._logged[kind] = now
            _log.warning(
                "partitions_blocked",
                partitions=sorted(p for p, (other, _) in self._reported.items() if other is kind),
                error=self.errors[partition],
            )
        self._blocked(partition)

    def unblock(self, partition: int) -> None:
        """Clear the error of a partition that works again."""
        self.errors.pop(partition, None)
        self._reported.pop(partition, None)

    def _on_unavailable(self, error: str) -> None:
        self.errors[EVERY_PARTITION] = error
        self._blocked(EVERY_PARTITION)

    def _text(self, error: Exception) -> str:
        match error:
            case RetryableError():
                return str(error)
            case InvalidTimestampError():
                return (
                    f"Kafka refuses the timestamp of this machine's clock: {error.description} "
                    f"({type(error).__name__})"
                )
            case TopicAuthorizationFailedError():
                return f"not authorized to write to the topic {self._topic}: grant Write"
            case ProducerClosed():
                return "the connection was renewed"
            case TimeoutError():
                return f"no acknowledgement for {_DELIVERY_TIMEOUT} s"
        return error_text(error)


class _PartitionQueue:
    """The pending records of one partition, in order, with at most one batch in flight."""

    def __init__(self, sender: Sender, partition: int) -> None:
        self._sender = sender
        self._partition = partition
        self.records: deque[PendingRecord] = deque()
        self._filled = asyncio.Event()
        self._task = RestartingTask(self._run)

    def append(self, record: PendingRecord) -> None:
        self.records.append(record)
        self._filled.set()

    async def stop(self) -> None:
        await self._task.stop()

    async def _run(self) -> None:
        failures = 0
        # The first `suspects` records were too large as one batch of `size` bytes. Sending halves
        # of them shows whether a single record is too large or only all of them together.
        suspects = size = 0
        while True:
            if self._expire():
                suspects = size = 0
            while not self.records:
                if failures:
                    failures = 0
                    self._sender.unblock(self._partition)
                self._filled.clear()
                await self._filled.wait()
            # A batch in flight stays at the head of the queue until its outcome is known.
            limit = (suspects + 1) // 2 or _BATCH_RECORDS
            count, base, error = await self._sender.send(self.records, self._partition, limit)
            if error is None:
                if failures:
                    failures = 0
                    self._sender.unblock(self._partition)
                suspects = max(0, suspects - count)
                if size and not suspects:
                    self._sender.limit_batches(size // 2)
                    size = 0
                records = [self.records.popleft() for _ in range(count)]
                self._sender.settle_acknowledged(records, self._partition, base)
            elif not isinstance(error, TOO_LARGE):
                self._sender.block(self._partition, error)
                suspects = size = 0
                await asyncio.sleep(backoff(failures))
                failures += 1
            elif suspects == 1:
                suspects = size = 0
                self._sender.settle_refused(self.records.popleft(), error)
            else:
                # A single record is sent once more as well.
                suspects = count
                size = sum(len(r.key) + len(r.value) for r in islice(self.records, count))

    def _expire(self) -> bool:
        """Give up records attempted too long ago; return whether there were any.

        Later records were attempted later.
        """
        horizon, number = now_ms() - HOLD_MS, len(self.records)
        while self.records and self.records[0].attempted_at < horizon:
            self._sender.settle_expired(self.records.popleft())
        return len(self.records) < number
