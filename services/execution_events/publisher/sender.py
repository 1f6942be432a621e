"""Records to Kafka: in order within each partition, each until it is acknowledged."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice

import msgspec
from aiokafka.errors import (
    CorruptRecordException,
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)
from aiokafka.partitioner import murmur2

from execution_events import wire
from execution_events.errors import RetryableError
from execution_events.observability import Logger
from execution_events.publisher.background import Background
from execution_events.publisher.producer import Producer
from execution_events.settings import Settings

_logger = Logger(__name__)

_BATCH_BYTES = 256 * 1024
"""Of one batch before compression: far below Kafka's default limit of 1 MiB."""
_BATCH_RECORDS = 10_000
_REQUEST_TIMEOUT = 15
"""Seconds until aiokafka gives up a request and sends it again."""
_DELIVERY_TIMEOUT = 60
"""Seconds without an acknowledgement after which a producer is replaced."""
_CONNECT_TIMEOUT = 30
_BACK_OFF = (0.1, 5.0)
"""Seconds between two attempts in a row that failed, at first and at most."""
_REFUSALS = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    InvalidTimestampError,
    CorruptRecordException,
)
"""What a broker answers that will never take these bytes."""

_murmur2 = lru_cache(maxsize=4096)(murmur2)


class Acknowledged(msgspec.Struct, frozen=True, gc=False):
    """Where Kafka has stored a record; the offset is -1 where the broker did not say it."""

    partition: int
    offset: int


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A record on its way. `timestamp` is in milliseconds since the Unix epoch.

    `sequence` rises strictly from one submitted record of a partition to the next. `waiter` and
    `deadline`, in seconds of the event loop's clock, are the submitter's own.
    """

    sequence: int
    key: bytes
    value: bytes
    traceparent: str | None
    timestamp: int
    waiter: asyncio.Future[Acknowledged] | None = None
    deadline: float = 0


class Sender:
    """Sends records of one source, for ever if need be.

    Each partition has one batch in flight, and the next begins when it is acknowledged. So a batch
    that is sent again, by a new producer too, is in the log before any later record of its source:
    every further copy is at or below the source's watermark, and is not counted.

    `acknowledged(records, partition, base_offset)` and `refused(record, detail)` are called in the
    event loop, once for each record in all.
    """

    def __init__(
        self,
        settings: Settings,
        source: str,
        *,
        acknowledged: Callable[[Sequence[Outgoing], int, int], None],
        refused: Callable[[Outgoing, str], None],
    ) -> None:
        self._client = settings.kafka_client()
        self._topic = settings.topic
        self._source = source
        self._acknowledged = acknowledged
        self._refused = refused
        self._lanes: dict[int, _Lane] = {}
        self._producer: Producer | None = None
        self._connecting = asyncio.Lock()
        self.partitions = 0
        """How many partitions the topic has; 0 until Kafka has said it."""
        self.pending = 0
        """How many records were submitted and have not met their fate."""

    @property
    def oldest(self) -> int | None:
        """The least sequence that is pending, None if there is none."""
        return min((lane.oldest for lane in self._lanes.values() if lane.pending), default=None)

    @property
    def lines(self) -> Iterator[Iterable[Outgoing]]:
        """What is pending for each partition, in order."""
        return (lane.waiting for lane in self._lanes.values())

    def partition_of(self, key: bytes) -> int:
        """The partition of `key` by Java's murmur2; only once `partitions` is known."""
        return int(_murmur2(key) & 0x7FFFFFFF) % self.partitions

    def submit(self, partition: int, record: Outgoing) -> None:
        """Send `record` to `partition`, after all that was submitted to it before.

        Not after `close`.
        """
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane(self, partition)
        self.pending += 1
        lane.submit(record)

    async def connect(self) -> None:
        """Reach Kafka once, so that `partitions` is known; `RetryableError` where it is away."""
        async with self._connecting:
            self._producer = await self._connect()

    async def until_connected(self) -> None:
        """Reach Kafka, however long it takes."""
        await self._connected()

    async def close(self) -> None:
        """Send nothing more, within 4 s. What is pending then may be in the log or not."""
        # Each ends within moments of its cancellation: none waits for Kafka then.
        await asyncio.gather(*(lane.stop() for lane in self._lanes.values()))
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.end()

    def settle_acknowledged(self, records: Sequence[Outgoing], partition: int, base: int) -> None:
        """A lane's batch is in the log."""
        self.pending -= len(records)
        self._acknowledged(records, partition, base)

    def settle_refused(self, record: Outgoing, error: Exception) -> None:
        """A lane's record will never be in the log."""
        self.pending -= 1
        self._refused(record, f"Kafka refuses the record: {type(error).__name__}")

    async def send(
        self, waiting: Sequence[Outgoing], partition: int, most: int
    ) -> tuple[int, int, Exception | None]:
        """Send one batch of the first of `waiting`, at most `most`.

        Gives how many were in the batch, its base offset, and the error that left its fate open.
        """
        producer = await self._connected()
        count = 0
        try:
            batch = producer.create_batch()
            append, encode_headers = batch.append, wire.encode_headers
            for record in islice(waiting, most):
                headers = encode_headers(self._source, record.sequence, record.traceparent)
                if not append(
                    timestamp=record.timestamp, key=record.key, value=record.value, headers=headers
                ):
                    break
                count += 1
            async with asyncio.timeout(_DELIVERY_TIMEOUT):
                if partition >= len(await producer.partitions_for(self._topic)):
                    raise RetryableError(f"the topic has no partition {partition}")
                sent = await producer.send_batch(batch, self._topic, partition=partition)
                return count, (await sent).offset, None
        except Exception as error:
            # Whatever it is, the library's own faults too, no record is given up for it.
            await self._drop(producer, error)
            return count, -1, error

    async def _connected(self) -> Producer:
        async with self._connecting:
            if self._producer is not None and not self._producer.alive:
                await self._drop(self._producer, RuntimeError("its tasks were cancelled"))
            failures = 0
            while self._producer is None:
                try:
                    self._producer = await self._connect()
                except Exception as error:
                    failures += 1
                    why = str(error) if isinstance(error, RetryableError) else repr(error)
                    _logger.warning("kafka is away", error=why, attempt=failures)
                    await asyncio.sleep(_pause(failures))
            return self._producer

    async def _connect(self) -> Producer:
        producer = Producer(
            **self._client,
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
            max_batch_size=_BATCH_BYTES,
            request_timeout_ms=_REQUEST_TIMEOUT * 1000,
        )
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await producer.start()
                self.partitions = len(await producer.partitions_for(self._topic))
        except BaseException as error:
            await producer.end()
            if isinstance(error, KafkaError | OSError):
                servers = self._client["bootstrap_servers"]
                raise RetryableError(f"Kafka at {servers}: {str(error) or 'no answer'}") from error
            raise
        return producer

    async def _drop(self, producer: Producer, error: Exception) -> None:
        """Have a new producer: after a fatal error of the old one, and after any that is open."""
        # Others that fail with the same producer find it gone.
        if self._producer is producer:
            self._producer = None
            _logger.warning("kafka producer replaced", error=f"{type(error).__name__}: {error}")
            await producer.end()


class _Lane:
    """The records of one partition, in order: at most one batch is in flight."""

    def __init__(self, sender: Sender, partition: int) -> None:
        self._sender = sender
        self._partition = partition
        self.waiting: deque[Outgoing] = deque()
        self._wake = asyncio.Event()
        self._task = Background(self._run)

    @property
    def pending(self) -> int:
        return len(self.waiting)

    @property
    def oldest(self) -> int:
        return self.waiting[0].sequence

    def submit(self, record: Outgoing) -> None:
        self.waiting.append(record)
        self._wake.set()

    async def stop(self) -> None:
        await self._task.stop()

    async def _run(self) -> None:
        failures = 0
        # So many at the head of the line were refused as a batch: halves of them find out which.
        suspects = 0
        while True:
            while not self.waiting:
                self._wake.clear()
                await self._wake.wait()
            # What is in flight stays at the head of the line until its fate is known.
            most = (suspects + 1) // 2 or _BATCH_RECORDS
            count, base, error = await self._sender.send(self.waiting, self._partition, most)
            if error is None:
                failures = 0
                suspects = max(0, suspects - count)
                records = [self.waiting.popleft() for _ in range(count)]
                self._sender.settle_acknowledged(records, self._partition, base)
            elif not isinstance(error, _REFUSALS):
                failures += 1
                await asyncio.sleep(_pause(failures))
            elif suspects == 1:
                suspects = 0
                self._sender.settle_refused(self.waiting.popleft(), error)
            else:
                # One that is alone, too, is sent once more, by another producer.
                suspects = count


def _pause(failures: int) -> float:
    first, most = _BACK_OFF
    pause: float = min(most, first * 2 ** min(failures - 1, 10))
    return pause * random.uniform(0.5, 1)  # noqa: S311
