"""Events that publishers under test send, and the log as it is afterwards."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from execution_events import wire
from execution_events.embedded import EmbeddedKafka
from execution_events.events import Occurrence
from execution_events.publisher import Event, Names
from execution_events.publisher.record import NewRecord
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE
from tests.support.topics import make_topic


class Published(NamedTuple):
    """A record of the log."""

    partition: int
    offset: int
    key: bytes
    name: str
    source: str
    sequence: int


def events(count: int, *, executions: int = 20, prefix: str = "event") -> list[Event]:
    """So many events, each with a name of its own."""
    return [
        Event(
            execution_id=f"execution-{number % executions}",
            namespace="tenant",
            object_name="job",
            name=f"{prefix}.{number}",
            reason="启动##ActionStart",
            elem_type="KubeDAG.init",
            elem_id="job-a",
            action_name="create",
            count=number + 1,
        )
        for number in range(count)
    ]


def records(of: Iterable[Event]) -> list[NewRecord]:
    names = Names()
    return [NewRecord.of(names.occurrence(event)) for event in of]


async def log(settings: Settings) -> list[Published]:
    """All records of the topic that publishers have sent, in the order of each partition."""
    return [_published(record) for record in await _records(settings)]


async def occurrences(settings: Settings) -> list[Occurrence]:
    """What all records of the topic carry, in the order of each partition."""
    return [wire.decode(each.key, each.value, 0) for each in await _records(settings)]


async def _records(settings: Settings) -> list[Any]:
    found: list[Any] = []
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers)
    await consumer.start()
    try:
        await consumer._client._wait_on_metadata(settings.kafka.topic)
        partitions = [
            TopicPartition(settings.kafka.topic, number)
            for number in consumer.partitions_for_topic(settings.kafka.topic)
        ]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        async with asyncio.timeout(DEADLINE):
            for partition, end in ends.items():
                while await consumer.position(partition) < end:
                    got = await consumer.getmany(partition, timeout_ms=200)
                    found += got.get(partition, ())
    finally:
        await consumer.stop()
    return found


def _published(record: Any) -> Published:
    origin = wire.decode_origin(record.headers)
    assert origin is not None
    name = wire.decode(record.key, record.value, 0).name
    return Published(
        record.partition, record.offset, record.key, name, origin.source, origin.sequence
    )


def counted(found: Iterable[Published]) -> list[Published]:
    """What a consumer counts, after a check that nothing else of it comes first in the log.

    A record at or below its source's watermark must be a further copy.
    """
    watermarks: dict[tuple[str, int], int] = {}
    seen: dict[tuple[str, int], Published] = {}
    for record in found:
        place = (record.source, record.partition)
        copy = seen.setdefault((record.source, record.sequence), record)
        assert (copy.partition, copy.name) == (record.partition, record.name)
        if copy is record:
            assert record.sequence > watermarks.get(place, -1), (record, watermarks)
            watermarks[place] = record.sequence
    return list(seen.values())


async def topic_on(kafka: EmbeddedKafka, settings: Settings, partitions: int = 3) -> Settings:
    """The settings for a topic of the same name on `kafka`."""
    settings = configured(settings, kafka_bootstrap_servers=kafka.bootstrap_servers)
    await make_topic(settings, partitions)
    return settings


@asynccontextmanager
async def administrator(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap_servers)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def grow(settings: Settings, partitions: int) -> None:
    async with administrator(settings) as client:
        await client.create_partitions(
            {settings.kafka.topic: NewPartitions(total_count=partitions)}
        )


@contextmanager
def silent(kafka: EmbeddedKafka) -> Iterator[None]:
    """Kafka takes connections and answers nothing."""
    kafka.process.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        kafka.process.kill(signal.SIGCONT)


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """No task and no socket more at the end than at the beginning."""
    tasks, descriptors = asyncio.all_tasks(), _sockets()
    yield
    for _ in range(3):
        # What was cancelled and closed ends in the loop's next rounds.
        await asyncio.sleep(0)
    assert asyncio.all_tasks() - tasks == set()
    assert _sockets() - descriptors == set()


def _sockets() -> set[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return {place for place in found if place.startswith("socket:")}
