"""One way to publish, measured in a process of its own.

    python -m tests.benchmarks.producer WAY EVENTS

Settings are in the environment. Prints a `Sample` as JSON. What is sent exists before the clock
starts: events for the publisher, encoded keys, values and headers for all others.
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
from execution_events.publisher import Event, EventNamer, Publisher
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.tracing import current_traceparent
from execution_events.settings import Settings
from tests.benchmarks.workload import seed_shaped

WINDOW = 1000
"""Records in flight, in as many tasks where each waits for its own; 64 is the other number."""
WIDE = 5000
"""Records in flight where the reference alone has so many: with more it is no faster."""
BATCH_BYTES = 256 * 1024
"""The publisher's; see `execution_events.publisher.delivery.sender`."""
FLUSH_TIMEOUT = 120
"""Seconds."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Sample:
    """Seconds from the first event until all were durable, and until Kafka had them all.

    `cpu` is what all threads of the process have used until then, in seconds.
    """

    durable: float
    delivered: float
    cpu: float


class Encoded(NamedTuple):
    """A record as other producers take it."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class Clock:
    """Wall and CPU time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._wall

    def sample(self, durable: float | None = None) -> Sample:
        """All is delivered now; durable, too, where it was not before."""
        delivered = self.seconds
        cpu = time.process_time() - self._cpu
        return Sample(delivered if durable is None else durable, delivered, cpu)


def encoded(number: int) -> list[Encoded]:
    """What the publisher would send for as many events."""
    namer = EventNamer()
    source = f"urn:uuid:{uuid.uuid4()}"
    return [
        Encoded(*wire.encode(namer.occurrence(event)), wire.encode_headers(source, sequence))
        for sequence, event in enumerate(seed_shaped(number), 1)
    ]


async def _share(
    items: Iterable[_T], tasks: int, work: Callable[[_T], Coroutine[Any, Any, object]]
) -> None:
    """Have `tasks` tasks take one item after the other."""
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
    """`send`, waiting for the oldest acknowledgement once `window` are awaited."""
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
    """`send_and_wait` from many tasks."""
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
    """`publish` from many tasks; with a spool where the settings name one."""
    events = list(seed_shaped(number))
    async with Publisher(settings) as publisher:
        clock = Clock()
        await _share(events, tasks, publisher.publish)
        durable = clock.seconds
        await publisher.flush(FLUSH_TIMEOUT)
        return clock.sample(durable)


def sync_publisher(threads: int, settings: Settings, number: int) -> Sample:
    """`publish` of the publisher for threads, from many threads."""
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
    """What `publish` does before it hands a record over: name, check, date and encode."""
    events = list(seed_shaped(number))
    namer = EventNamer()
    clock = Clock()
    for event in events:
        PendingRecord.of(namer.occurrence(event), current_traceparent())
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
    """`produce` in one thread, waiting where `WINDOW` are in flight."""
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
    """`produce` of the asynchronous producer, like `aiokafka_window`; it takes no headers."""
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
    """`produce` of the asynchronous producer from many tasks; it takes no headers.

    Its buffer goes out when it is full or was idle for 100 ms: with room for all tasks it is full
    as soon as all of them wait.
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
    """Without this, acknowledgements are told with the next batch, or after 100 ms."""
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
    """Measure it, and print the sample."""
    settings = settings_module.load(os.environ)
    measured = WAYS[way](settings, number)
    sample = measured if isinstance(measured, Sample) else asyncio.run(measured)
    print(json.dumps(asdict(sample)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
