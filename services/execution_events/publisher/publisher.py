"""Sends occurrences to the topic."""

import asyncio
from collections.abc import Awaitable
from types import TracebackType
from typing import NamedTuple, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from execution_events import wire
from execution_events.errors import RetryableError
from execution_events.events import Occurrence
from execution_events.settings import Settings
from execution_events.wire import Origin

_STOP_TIMEOUT = 10
"""Seconds to stop; aiokafka's own stop waits for ever while Kafka is away."""


class Acknowledged(NamedTuple):
    """Where Kafka has stored a record."""

    partition: int
    offset: int


class Publisher:
    """An idempotent producer of one topic; an asynchronous context manager.

    An acknowledged occurrence is on all in-sync replicas. One whose acknowledgement did not come
    may be or may not be in the topic.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        producer = AIOKafkaProducer(
            **self._settings.kafka_client(),
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
        )
        try:
            await producer.start()
        except KafkaError as error:
            await producer.stop()
            raise RetryableError(
                f"Kafka at {self._settings.kafka_bootstrap_servers}: {error}"
            ) from error
        self._producer = producer
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                await asyncio.wait_for(producer.stop(), _STOP_TIMEOUT)
            except TimeoutError as error:
                # What went wrong before says more.
                if exc is None:
                    raise RetryableError("Kafka is away: the publisher could not stop") from error

    async def publish(
        self, occurrence: Occurrence, origin: Origin | None = None, *, timeout: float = 30
    ) -> Acknowledged:
        """Send `occurrence` and wait until Kafka acknowledges it, at most `timeout` seconds.

        Raises `RetryableError` when it does not; the record may still arrive.
        """
        try:
            async with asyncio.timeout(timeout):
                return await (await self.send(occurrence, origin))
        except TimeoutError as error:
            raise RetryableError(f"Kafka has acknowledged nothing for {timeout} s") from error

    async def send(
        self, occurrence: Occurrence, origin: Origin | None = None
    ) -> Awaitable[Acknowledged]:
        """Put `occurrence` in line and give its acknowledgement to wait for.

        What is sent one after the other keeps its order within an execution. Waits while the
        line is full.
        """
        if self._producer is None:
            raise RuntimeError("the publisher is not open")
        key, value = wire.encode(occurrence)
        headers = [] if origin is None else wire.encode_origin(origin)
        try:
            sent = await self._producer.send(
                self._settings.topic, key=key, value=value, headers=headers
            )
        except KafkaError as error:
            raise RetryableError(f"Kafka: {error}") from error
        return self._acknowledgement(sent)

    async def _acknowledgement(self, sent: asyncio.Future[Acknowledged]) -> Acknowledged:
        try:
            metadata = await asyncio.shield(sent)
        except KafkaError as error:
            raise RetryableError(f"Kafka: {error}") from error
        return Acknowledged(metadata.partition, metadata.offset)
