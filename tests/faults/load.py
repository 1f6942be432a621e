"""Workers that publish during an episode and record every acknowledgement."""

import asyncio
from collections import deque
from collections.abc import Container, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from tests.faults.author import Author, Message
from tests.faults.oracle import Acknowledged

_BURST = 8
"""Messages that a worker sends before it checks for acknowledgements."""
_SETTLE_LIMIT = 60
"""Seconds after the end in which records in flight may still be acknowledged."""
_STOP_LIMIT = 5  # seconds; an idempotent producer waits indefinitely while Kafka is unavailable
_CHOOSE = DefaultPartitioner()


async def choose(producer: AIOKafkaProducer, topic: str, message: Message) -> int:
    """Return the partition for a message's first attempt."""
    partitions = sorted(await producer.partitions_for(topic))
    chosen: int = _CHOOSE(message.key, partitions, partitions)
    return chosen


class Publisher(Protocol):
    """A publisher of records during an episode."""

    acknowledged: list[Acknowledged]
    sent: int

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set, then wait for the records in flight."""


class Worker:
    """A worker that sends an author's messages with an idempotent producer.

    A message with a source is sent until it is acknowledged, always to the partition of its first
    attempt and before any later message of its source. A message without a source is sent once: a
    second attempt would count as a second occurrence. With `partition`, messages for other
    partitions are skipped. While `paused`, the worker sends nothing new.
    """

    def __init__(
        self,
        author: Author,
        bootstrap_servers: str,
        topic: str,
        rate: float,
        partition: int | None = None,
    ) -> None:
        self.acknowledged: list[Acknowledged] = []
        self.sent = 0
        self.replaced = 0
        self.partition = partition
        self.paused = False
        self._author = author
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._interval = _BURST / rate
        self._producer: AIOKafkaProducer | None = None
        self._in_flight: deque[tuple[Message, asyncio.Future[Any]]] = deque()

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set, then wait for the records in flight."""
        loop = asyncio.get_running_loop()
        try:
            while not stop.is_set():
                for _ in range(0 if self.paused else _BURST):
                    await self._send(self._author.next())
                await self._reap()
                await asyncio.sleep(self._interval)
            deadline = loop.time() + _SETTLE_LIMIT
            while self._in_flight and loop.time() < deadline:
                await asyncio.sleep(0.05)
                await self._reap()
        finally:
            await self._drop_producer()

    @property
    def in_flight(self) -> int:
        """The number of records neither acknowledged nor given up."""
        return len(self._in_flight)

    async def _send(self, message: Message) -> None:
        while True:
            try:
                if self._producer is None:
                    self._producer = await self._connect()
                if message.partition is None:
                    message.partition = await choose(self._producer, self._topic, message)
                if self.partition not in (None, message.partition):
                    return
                future = await self._producer.send(
                    self._topic,
                    message.value,
                    message.key,
                    partition=message.partition,
                    headers=list(message.headers),
                )
            except KafkaError:
                # The producer did not accept the message.
                await asyncio.sleep(0.2)
                if self._broken():
                    await self._replace()
            else:
                self._in_flight.append((message, future))
                self.sent += 1
                return

    async def _reap(self) -> None:
        while self._in_flight and self._in_flight[0][1].done():
            message, future = self._in_flight[0]
            if future.cancelled() or future.exception() is not None:
                await self._replace()
                return
            self._in_flight.popleft()
            self._acknowledge(message, future)

    def _acknowledge(self, message: Message, future: asyncio.Future[Any]) -> None:
        sent = future.result()
        self.acknowledged.append(
            Acknowledged((sent.partition, sent.offset), message.source, message.sequence)
        )

    async def _replace(self) -> None:
        """Send again with a new producer, after an error that may have broken the order."""
        self.replaced += 1
        in_flight = list(self._in_flight)
        self._in_flight.clear()
        await asyncio.wait([future for _, future in in_flight], timeout=_SETTLE_LIMIT)
        await self._drop_producer()
        again = []
        for message, future in in_flight:
            if not future.done() or future.cancelled() or future.exception() is not None:
                if message.source is not None:
                    again.append(message)
            else:
                self._acknowledge(message, future)
        for message in again:
            await self._send(message)

    def _broken(self) -> bool:
        return any(
            future.done() and (future.cancelled() or future.exception() is not None)
            for _, future in self._in_flight
        )

    async def _connect(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap_servers,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            metadata_max_age_ms=3000,
        )
        try:
            await producer.start()
        except KafkaError:
            await stop_producer(producer)
            raise
        return producer

    async def _drop_producer(self) -> None:
        if self._producer is not None:
            await stop_producer(self._producer)
            self._producer = None


async def stop_producer(producer: AIOKafkaProducer) -> None:
    """Stop the producer cleanly, or close its client after a timeout."""
    try:
        async with asyncio.timeout(_STOP_LIMIT):
            await producer.stop()
    except (TimeoutError, KafkaError):
        await producer.client.close()


class Load:
    """A group of workers. `stop` ends them cleanly; leaving the context cancels them."""

    def __init__(self, workers: Sequence[Publisher]) -> None:
        self._workers = workers
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(worker.run(self._stop)) for worker in self._workers]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def acknowledged(self) -> list[Acknowledged]:
        """Every acknowledged record."""
        return [promise for worker in self._workers for promise in worker.acknowledged]

    @property
    def sent(self) -> int:
        """The number of records handed to producers."""
        return sum(worker.sent for worker in self._workers)

    async def pause(self, partitions: Container[int]) -> None:
        """Pause the workers of `partitions`; return when they have nothing in flight."""
        paused = [
            worker
            for worker in self._workers
            if isinstance(worker, Worker) and worker.partition in partitions
        ]
        for worker in paused:
            worker.paused = True
        while any(worker.in_flight for worker in paused):
            await asyncio.sleep(0.05)

    def forget(self) -> None:
        """Discard the acknowledgements, whose log no longer exists."""
        for worker in self._workers:
            worker.acknowledged.clear()

    async def stop(self) -> None:
        """Send nothing new; return when nothing is in flight."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
