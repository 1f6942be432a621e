"""Process that publishes in one way and measures it.

    python -m tests.benchmarks.producer WAY EVENTS

Settings are in the environment. Prints a `Sample` as JSON. The input is made before the clock
starts: events for the publisher, encoded keys, values and headers for the other producers.
"""

import asyncio
import json
import os
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from aiokafka import AIOKafkaProducer
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.aio import AIOProducer

from execution_events import settings as settings_module
from execution_events import sync, wire
from execution_events.kafka.connection import client_options
from execution_events.publisher import Event, Publisher
from execution_events.publisher.event import occurrence_of
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.tracing import current_traceparent
from execution_events.settings import Settings
from tests.benchmarks.workload import seed_shaped

WINDOW = 1000
"""Records in flight, or tasks that wait for one each; the other size is 64."""
WIDE = 5000
"""Records in flight of the reference at its fastest."""
BATCH_BYTES = 256 * 1024
"""The publisher's batch size; see `execution_events.publisher.delivery.sender`."""
FLUSH_TIMEOUT = 120
"""Seconds."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Sample:
    """Seconds from the first event until all were durable, and until Kafka had them all.

    `cpu` is seconds of CPU of all threads of the process until then.
    """

    durable: float
    delivered: float
    cpu: float


class Encoded(NamedTuple):
    """A record in the form that other producers take."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class Clock:
    """Wall and CPU time since its creation."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._wall

    def sample(self, durable: float | None = None) -> Sample:
        """Return the times until now; `durable` defaults to the time of delivery."""
        delivered = self.seconds
        cpu = time.process_time() - self._cpu
        return Sample(delivered if durable is None else durable, delivered, cpu)


def encoded(number: int) -> list[Encoded]:
    """Return the records that the publisher would send for `number` events."""
    source = f"urn:uuid:{uuid.uuid4()}"
    return [
        Encoded(*wire.encode(occurrence_of(event)), wire.encode_headers(source, sequence))
        for sequence, event in enumerate(seed_shaped(number), 1)
    ]


async def _share(
    items: Iterable[_T], tasks: int, work: Callable[[_T], Coroutine[Any, Any, object]]
) -> None:
    """Work off the items in `tasks` concurrent tasks."""
    line = iter(items)

    async def take() -> None:
        for item in line:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(take())


# aiokafka


def _aiokafka(settings: Settings) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        **client_options(settings.kafka),
        acks="all",
        enable_idempotence=True,
        compression_type="zstd",
        max_batch_size=BATCH_BYTES,
    )


async def aiokafka_window(window: int, settings: Settings, number: int) -> Sample:
    """Send records, waiting for the oldest acknowledgement once `window` are outstanding."""
    records = encoded(number)
    async with _aiokafka(settings) as producer:
        await producer.partitions_for(settings.kafka.topic)
        clock = Clock()
        awaited: deque[asyncio.Future[object]] = deque()
        for key, value, headers in records:
            if len(awaited) == window:
                await awaited.popleft()
            awaited.append(
                await producer.send(settings.kafka.topic, value=value, key=key, headers=headers)
            )
        await asyncio.gather(*awaited)
        return clock.sample()


async def aiokafka_tasks(tasks: int, settings: Settings, number: int) -> Sample:
    """Call `send_and_wait` from many tasks."""
    records = encoded(number)
    async with _aiokafka(settings) as producer:
        await producer.partitions_for(settings.kafka.topic)

        async def send(record: Encoded) -> None:
            key, value, headers = record
            await producer.send_and_wait(
                settings.kafka.topic, value=value, key=key, headers=headers
            )

        clock = Clock()
        await _share(records, tasks, send)
        return clock.sample()


# The publisher


async def publisher(tasks: int, settings: Settings, number: int) -> Sample:
    """Call `publish` from many tasks; with a spool if the settings name one."""
    events = list(seed_shaped(number))
    async with Publisher(settings) as publisher:
        clock = Clock()
        await _share(events, tasks, publisher.publish)
        durable = clock.seconds
        await publisher.flush(FLUSH_TIMEOUT)
        return clock.sample(durable)


def sync_publisher(threads: int, settings: Settings, number: int) -> Sample:
    """Call `publish` of `sync.Publisher` from many threads."""
    events = list(seed_shaped(number))
    with sync.Publisher(settings) as publisher, ThreadPoolExecutor(threads) as pool:

        def take(line: Iterator[Event]) -> None:
            for event in line:
                publisher.publish(event)

        clock = Clock()
        line = iter(events)
        for thread in [pool.submit(take, line) for _ in range(threads)]:
            thread.result()
        return clock.sample()


def before_hand_over(_: Settings, number: int) -> Sample:
    """Run the part of `publish` before a record is handed over: name, check, date and encode."""
    events = list(seed_shaped(number))
    clock = Clock()
    for event in events:
        PendingRecord.of(occurrence_of(event), current_traceparent())
    return clock.sample()


# confluent-kafka


def _confluent(settings: Settings) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.kafka.bootstrap_servers,
        "acks": "all",
        "enable.idempotence": True,
        "compression.type": "zstd",
        "batch.size": BATCH_BYTES,
        "partitioner": "murmur2_random",
    }


def confluent_window(settings: Settings, number: int) -> Sample:
    """Call `produce` in one thread, waiting while `WINDOW` records are in flight."""
    records = encoded(number)
    producer = Producer(_confluent(settings))
    producer.list_topics(settings.kafka.topic)
    errors: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            errors.append(error)

    clock = Clock()
    for key, value, headers in records:
        while len(producer) >= WINDOW:
            producer.poll(0.01)
        producer.produce(settings.kafka.topic, value, key, headers=headers, on_delivery=delivered)
        producer.poll(0)
    producer.flush(FLUSH_TIMEOUT)
    sample = clock.sample()
    if errors:
        raise RuntimeError(f"{len(errors)} not delivered: {errors[0]}")
    return sample


async def confluent_aio_window(settings: Settings, number: int) -> Sample:
    """Call `produce` of `AIOProducer` as in `aiokafka_window`, without headers."""
    records = encoded(number)
    async with AIOProducer(_confluent(settings), batch_size=WINDOW // 4) as producer:
        await producer.list_topics(settings.kafka.topic)
        polling = asyncio.create_task(_poll(producer))
        clock = Clock()
        awaited: deque[asyncio.Future[object]] = deque()
        for key, value, _ in records:
            if len(awaited) == WINDOW:
                await awaited.popleft()
            awaited.append(await producer.produce(settings.kafka.topic, value, key))
        await producer.flush()
        await asyncio.gather(*awaited)
        sample = clock.sample()
        await _cancel(polling)
        return sample


async def confluent_aio_tasks(tasks: int, settings: Settings, number: int) -> Sample:
    """Call `produce` of `AIOProducer` from many tasks, without headers.

    Its buffer is sent when it is full or idle for 100 ms. With one slot a task it is full as soon
    as all tasks wait.
    """
    records = encoded(number)
    async with AIOProducer(
        _confluent(settings) | {"linger.ms": 1}, batch_size=tasks, buffer_timeout=0.1
    ) as producer:
        await producer.list_topics(settings.kafka.topic)
        polling = asyncio.create_task(_poll(producer))

        async def send(record: Encoded) -> None:
            await (await producer.produce(settings.kafka.topic, record.value, record.key))

        clock = Clock()
        await _share(records, tasks, send)
        sample = clock.sample()
        await _cancel(polling)
        return sample


async def _poll(producer: AIOProducer) -> None:
    """Poll for acknowledgements, which otherwise arrive with the next batch or after 100 ms."""
    while True:
        await producer.poll(0.05)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


WAYS: dict[
    str, Callable[[Settings, int], Sample] | Callable[[Settings, int], Coroutine[Any, Any, Sample]]
] = {
    "aiokafka-wide": partial(aiokafka_window, WIDE),
    "aiokafka-window": partial(aiokafka_window, WINDOW),
    "aiokafka-tasks": partial(aiokafka_tasks, WINDOW),
    "aiokafka-64": partial(aiokafka_tasks, 64),
    "publisher-tasks": partial(publisher, WINDOW),
    "publisher-64": partial(publisher, 64),
    "spool-64": partial(publisher, 64),
    "sync-8": partial(sync_publisher, 8),
    "sync-64": partial(sync_publisher, 64),
    "confluent-aio-window": confluent_aio_window,
    "confluent-aio-64": partial(confluent_aio_tasks, 64),
    "confluent-window": confluent_window,
    "before-hand-over": before_hand_over,
}


def main(way: str, number: int) -> None:
    """Measure one way and print the sample."""
    settings = settings_module.load(os.environ)
    measured = WAYS[way](settings, number)
    sample = measured if isinstance(measured, Sample) else asyncio.run(measured)
    print(json.dumps(asdict(sample)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
