"""The connection to Kafka: one producer at a time, replaced when it fails."""

import asyncio
from collections.abc import Callable

from aiokafka.errors import KafkaError

from execution_events.backoff import backoff
from execution_events.errors import RetryableError
from execution_events.kafka.connection import client_options
from execution_events.kafka.errors import error_text, kafka_error, translated
from execution_events.kafka.producer import Producer
from execution_events.logs import Logger
from execution_events.publisher.record import HOLD_MS
from execution_events.settings import KafkaSettings

_log = Logger(__name__)

REQUEST_TIMEOUT = 15
"""Seconds after which aiokafka gives up a request and sends it again."""
_CONNECT_TIMEOUT = 30
_BATCH_BYTES = 256 * 1024
"""Limit of one batch before compression, far below Kafka's default limit of 1 MiB."""


class PartitionMissingError(RetryableError):
    """Send the record when the topic has the partition again, or give it another partition."""


class KafkaConnection:
    """An idempotent producer for one topic.

    `unavailable(error)` is called after each failed attempt of `producer` to connect.
    """

    def __init__(self, settings: KafkaSettings, unavailable: Callable[[str], None]) -> None:
        self._options = client_options(settings)
        self._topic = settings.topic
        self._unavailable = unavailable
        self._batch_bytes = _BATCH_BYTES
        self._producer: Producer | None = None
        self._connecting = asyncio.Lock()
        self.partitions = 0
        """Number of partitions of the topic; 0 until Kafka has been reached."""

    async def open(self) -> None:
        """Connect once; raise `RetryableError` when Kafka cannot be reached."""
        async with self._connecting:
            self._producer = await self._connect()

    async def producer(self) -> Producer:
        """Return the producer; connect first, however long that takes."""
        async with self._connecting:
            if self._producer is not None and not self._producer.alive:
                await self.replace(self._producer, RuntimeError("its tasks were cancelled"))
            failures = 0
            while self._producer is None:
                try:
                    self._producer = await self._connect()
                except Exception as error:
                    text = str(error) if isinstance(error, RetryableError) else error_text(error)
                    _log.warning("kafka_unavailable", error=text, attempt=failures + 1)
                    self._unavailable(text)
                    await asyncio.sleep(backoff(failures))
                    failures += 1
            return self._producer

    async def check_partition(self, producer: Producer, partition: int) -> None:
        """Raise `PartitionMissingError` if the topic does not have `partition`.

        Only a partition that is missing from the cached metadata costs a request to a broker.
        """
        if partition < producer.known_partitions(self._topic):
            return
        async with asyncio.timeout(REQUEST_TIMEOUT):
            self.partitions = await producer.find_partitions(self._topic)
        if partition >= self.partitions:
            raise PartitionMissingError(
                f"topic {self._topic} has only {self.partitions} partitions: "
                "`execution-events spool drain --accept-duplicates` moves its events to others"
            )

    def limit_batches(self, size: int) -> None:
        """Limit all further batches to `size` bytes of keys and values."""
        self._batch_bytes = max(1, min(self._batch_bytes, size))
        if self._producer is not None:
            self._producer.limit_batches(self._batch_bytes)

    async def replace(self, producer: Producer, error: Exception) -> None:
        """End `producer` after `error`, unless that has been done; the next use connects again."""
        if self._producer is producer:
            self._producer = None
            _log.warning("producer_replaced", error=error_text(error))
            await producer.end()

    async def close(self) -> None:
        """End the producer within 2 s; unacknowledged records may or may not be in the log."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.end()

    async def _connect(self) -> Producer:
        producer = Producer(
            **self._options,
            resend_ms=HOLD_MS,
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
            max_batch_size=self._batch_bytes,
            request_timeout_ms=REQUEST_TIMEOUT * 1000,
        )
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await producer.start()
                self.partitions = await producer.find_partitions(self._topic)
        except BaseException as error:
            await producer.end()
            servers = self._options["bootstrap_servers"]
            if isinstance(error, RetryableError):
                raise kafka_error(servers, str(error), error.cause) from error
            if isinstance(error, KafkaError | OSError):
                raise translated(servers, error) from error
            raise
        return producer
