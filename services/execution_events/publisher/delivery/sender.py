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
    KafkaError,
    ProducerClosed,
    TopicAuthorizationFailedError,
)
from aiokafka.partitioner import murmur2

from execution_events import wire
from execution_events.backoff import backoff
from execution_events.errors import RetryableError
from execution_events.kafka.connection import client_options
from execution_events.kafka.producer import NOT_APPENDED, TOO_LARGE, Producer
from execution_events.logs import Logger
from execution_events.publisher.delivery.task import Background
from execution_events.publisher.record import HOLD_MS, now_ms
from execution_events.settings import KafkaSettings

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
_REPORT_INTERVAL = 60
"""Seconds between two log lines on records that wait for the same reason."""
EVERY_PARTITION = -1
"""Stands for the partition where the reason to wait is one of all."""

_murmur2 = lru_cache(maxsize=4096)(murmur2)


class Acknowledged(msgspec.Struct, frozen=True, gc=False):
    """Where Kafka has stored a record; the offset is -1 where the broker did not say it."""

    partition: int
    offset: int


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A record on its way. `attempted_at`, in milliseconds since the Unix epoch, is not later than
    its first attempt.

    `sequence` rises strictly from one submitted record of a partition to the next. `waiter` and
    `deadline`, in seconds of the event loop's clock, are the submitter's own.
    """

    sequence: int
    key: bytes
    value: bytes
    traceparent: str | None
    attempted_at: int
    waiter: asyncio.Future[Acknowledged] | None = None
    deadline: float = 0


class PartitionMissingError(RetryableError):
    """Send it when the topic has the partition again, or as a new record: it may be there never."""


def _ignore(partition: int) -> None:
    pass


class Sender:
    """Sends records of one source, as long as consumers know what they have counted of it.

    Each partition has one batch in flight, and the next begins when it is acknowledged. So a batch
    that is sent again, by a new producer too, is in the log before any later record of its source:
    every further copy is at or below the source's watermark, and is not counted. A record gets its
    Kafka timestamp when it is sent, another one each time.

    Kafka refuses a record for good where it is too large by itself. Every other refusal is one of
    the environment: the partition waits and tries again, the others go on.

    `acknowledged(records, partition, base_offset)`, `refused(record, detail)` and `expired(record)`
    are called in the event loop, one of them once for each record: `expired` for one that was
    attempted more than `HOLD_MS` ago, which is not sent any more. `waits(partition)` is called when
    an attempt has failed; then `take_back` may be called, but not for `EVERY_PARTITION`.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        source: str,
        *,
        acknowledged: Callable[[Sequence[Outgoing], int, int], None],
        refused: Callable[[Outgoing, str], None],
        expired: Callable[[Outgoing], None],
        waits: Callable[[int], None] = _ignore,
    ) -> None:
        self._client = client_options(settings)
        self._topic = settings.topic
        self._source = source
        self._acknowledged = acknowledged
        self._refused = refused
        self._expired = expired
        self._waits = waits
        self._batch_bytes = _BATCH_BYTES
        self._noted: dict[int, tuple[type[Exception], float]] = {}
        self._logged: dict[type[Exception], float] = {}
        self._lanes: dict[int, _Lane] = {}
        self._producer: Producer | None = None
        self._connecting = asyncio.Lock()
        self.partitions = 0
        """How many partitions the topic has; 0 until Kafka has said it."""
        self.pending = 0
        """How many records were submitted and have not met their fate."""
        self.reasons: dict[int, str] = {}
        """Why partitions wait: those whose last attempt has failed, and `EVERY_PARTITION`."""

    @property
    def oldest(self) -> int | None:
        """The least sequence that is pending, None if there is none."""
        return min((lane.oldest for lane in self._lanes.values() if lane.pending), default=None)

    @property
    def lines(self) -> Iterator[tuple[int, Iterable[Outgoing]]]:
        """Each partition with what is pending for it, in order."""
        return ((partition, lane.waiting) for partition, lane in self._lanes.items())

    def reason(self, partition: int) -> str | None:
        """Why the records of `partition` wait, None where nothing is wrong."""
        return self.reasons.get(partition, self.reasons.get(EVERY_PARTITION))

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

    def take_back(self, partition: int) -> list[Outgoing]:
        """Remove all records of `partition` but the first, which finds out when it goes on.

        Only while it waits after an attempt that has failed.
        """
        waiting = self._lanes[partition].waiting
        taken = list(islice(waiting, 1, None))
        for _ in taken:
            waiting.pop()
        self.pending -= len(taken)
        return taken

    def settle_acknowledged(self, records: Sequence[Outgoing], partition: int, base: int) -> None:
        """A lane's batch is in the log."""
        self.pending -= len(records)
        self._acknowledged(records, partition, base)

    def settle_refused(self, record: Outgoing, error: Exception) -> None:
        """A lane's record will never be in the log."""
        self.pending -= 1
        self._refused(record, f"Kafka refuses the record: {type(error).__name__}")

    def settle_expired(self, record: Outgoing) -> None:
        """A lane's record was attempted too long ago."""
        self.pending -= 1
        self._expired(record)

    def note_failure(self, partition: int, error: Exception) -> None:
        """An attempt of a lane has failed: its records wait. The log tells why once a minute."""
        kind, now = type(error), asyncio.get_running_loop().time()
        # Some texts change with each attempt, and who stores them need not.
        noted, at = self._noted.get(partition, (None, now))
        if noted is not kind or at <= now - _REPORT_INTERVAL:
            self._noted[partition] = kind, now
            self.reasons[partition] = self._text(error)
        # One that was replaced is in the log, for all partitions.
        told = kind is ProducerClosed or self._logged.get(kind, -inf) > now - _REPORT_INTERVAL
        if not told:
            self._logged[kind] = now
            partitions = sorted(p for p, (noted, _) in self._noted.items() if noted is kind)
            _logger.warning("partitions_wait", partitions=partitions, error=self.reasons[partition])
        self._waits(partition)

    def note_success(self, partition: int) -> None:
        """Nothing of a lane waits any more for what its last attempt has failed with."""
        self.reasons.pop(partition, None)
        self._noted.pop(partition, None)

    def _text(self, error: Exception) -> str:
        match error:
            case RetryableError():
                return str(error)
            case InvalidTimestampError():
                return (
                    f"Kafka refuses the time of this machine's clock: {error.description} "
                    f"({type(error).__name__})"
                )
            case TopicAuthorizationFailedError():
                return f"no right to write to the topic {self._topic}"
            case ProducerClosed():
                return "the connection was renewed"
            case TimeoutError():
                return f"no acknowledgement for {_DELIVERY_TIMEOUT} s"
        return str(error) if isinstance(error, KafkaError) else f"{type(error).__name__}: {error}"

    def limit_batches(self, size: int) -> None:
        """Send no batch of more than `size` bytes, of keys and values, any more."""
        self._batch_bytes = max(1, min(self._batch_bytes, size))
        if self._producer is not None:
            self._producer.limit_batches(self._batch_bytes)

    async def send(
        self, waiting: Sequence[Outgoing], partition: int, most: int
    ) -> tuple[int, int, Exception | None]:
        """Send one batch of the first of `waiting`, at most `most`.

        Gives how many were in the batch, its base offset, and the error that it has failed with:
        one of `TOO_LARGE`, or one that leaves its fate open or may be another one next time.
        """
        producer = await self._connected()
        count = 0
        try:
            if partition >= producer.known_partitions(self._topic):
                await self._find_partition(producer, partition)
            timestamp = now_ms()
            batch = producer.create_batch()
            append, encode_headers = batch.append, wire.encode_headers
            for record in islice(waiting, most):
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
            # Whatever it is, the library's own faults too, no record is given up for it.
            if not isinstance(error, (*NOT_APPENDED, RetryableError)):
                await self._drop(producer, error)
            return count, -1, error

    async def _find_partition(self, producer: Producer, partition: int) -> None:
        """Raise a `RetryableError` where a broker does not know `partition` of the topic either."""
        async with asyncio.timeout(_REQUEST_TIMEOUT):
            self.partitions = await producer.find_partitions(self._topic)
        if partition >= self.partitions:
            raise PartitionMissingError(
                f"the topic {self._topic} has only {self.partitions} partitions: "
                "`execution-events spool drain --accept-duplicates` gives events new ones"
            )

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
                    self.reasons[EVERY_PARTITION] = why
                    _logger.warning("kafka is away", error=why, attempt=failures)
                    self._waits(EVERY_PARTITION)
                    await asyncio.sleep(backoff(failures - 1, *_BACK_OFF))
            self.reasons.pop(EVERY_PARTITION, None)
            return self._producer

    async def _connect(self) -> Producer:
        producer = Producer(
            **self._client,
            resend_ms=HOLD_MS,
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
            max_batch_size=self._batch_bytes,
            request_timeout_ms=_REQUEST_TIMEOUT * 1000,
        )
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await producer.start()
                self.partitions = await producer.find_partitions(self._topic)
        except BaseException as error:
            await producer.end()
            if isinstance(error, KafkaError | OSError | RetryableError):
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
        # So many at the head of the line were too large as a batch, which had so many bytes: halves
        # of them find out whether one of them is, or all together.
        suspects = size = 0
        while True:
            if self._expire():
                suspects = size = 0
            while not self.waiting:
                if failures:
                    failures = 0
                    self._sender.note_success(self._partition)
                self._wake.clear()
                await self._wake.wait()
            # What is in flight stays at the head of the line until its fate is known.
            most = (suspects + 1) // 2 or _BATCH_RECORDS
            count, base, error = await self._sender.send(self.waiting, self._partition, most)
            if error is None:
                if failures:
                    failures = 0
                    self._sender.note_success(self._partition)
                suspects = max(0, suspects - count)
                if size and not suspects:
                    self._sender.limit_batches(size // 2)
                    size = 0
                records = [self.waiting.popleft() for _ in range(count)]
                self._sender.settle_acknowledged(records, self._partition, base)
            elif not isinstance(error, TOO_LARGE):
                failures += 1
                self._sender.note_failure(self._partition, error)
                suspects = size = 0
                await asyncio.sleep(backoff(failures - 1, *_BACK_OFF))
            elif suspects == 1:
                suspects = size = 0
                self._sender.settle_refused(self.waiting.popleft(), error)
            else:
                # One that is alone, too, is sent once more.
                suspects = count
                size = sum(len(r.key) + len(r.value) for r in islice(self.waiting, count))

    def _expire(self) -> bool:
        """Give up what was attempted too long ago; later records were attempted later."""
        horizon, number = now_ms() - HOLD_MS, self.pending
        while self.waiting and self.waiting[0].attempted_at < horizon:
            self._sender.settle_expired(self.waiting.popleft())
        return self.pending < number
