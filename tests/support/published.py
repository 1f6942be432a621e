"""Events for publishers under test, and the resulting records of the log."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from execution_events import wire
from execution_events.embedded import EmbeddedKafka
from execution_events.events import Occurrence
from execution_events.publisher import Event
from execution_events.publisher.event import occurrence_of
from execution_events.publisher.record import PendingRecord
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
    """Return `count` events with unique names."""
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


def records(of: Iterable[Event]) -> list[PendingRecord]:
    return [PendingRecord.of(occurrence_of(event)) for event in of]


async def log(settings: Settings) -> list[Published]:
    """Return all published records of the topic, in order within each partition."""
    return [_published(record) for record in await _records(settings)]


async def occurrences(settings: Settings) -> list[Occurrence]:
    """Return the occurrences of all records of the topic, in order within each partition."""
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
    """Return the records that a consumer counts.

    Checks that every record at or below its source's watermark is a further copy.
    """
    watermarks: dict[tuple[str, int], int] = {}
    seen: dict[tuple[str, int], Published] = {}
    for record in found:
        watermark = (record.source, record.partition)
        copy = seen.setdefault((record.source, record.sequence), record)
        assert (copy.partition, copy.name) == (record.partition, record.name)
        if copy is record:
            assert record.sequence > watermarks.get(watermark, -1), (record, watermarks)
            watermarks[watermark] = record.sequence
    return list(seen.values())


async def topic_on(kafka: EmbeddedKafka, settings: Settings, partitions: int = 3) -> Settings:
    """Create the topic on `kafka`; return settings for it."""
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


def freeze(kafka: EmbeddedKafka) -> None:
    """Stop all threads of Kafka; it runs again after SIGCONT."""
    kafka.process.kill(signal.SIGSTOP)
    threads = Path(f"/proc/{kafka.process.pid}/task")
    # The signal is delivered to each thread a moment later, which may answer until then.
    while any(_state(thread) != "T" for thread in threads.iterdir()):
        time.sleep(0.001)


def _state(thread: Path) -> str:
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "T"  # It has ended.


@contextmanager
def silent(kafka: EmbeddedKafka) -> Iterator[None]:
    """Freeze Kafka: it accepts connections and answers nothing."""
    freeze(kafka)
    try:
        yield
    finally:
        kafka.process.kill(signal.SIGCONT)


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Check that the block leaves no task and no socket behind."""
    tasks, descriptors = asyncio.all_tasks(), _sockets()
    yield
    for _ in range(3):
        # Cancelled tasks and closed sockets end in the next iterations of the loop.
        await asyncio.sleep(0)
    assert asyncio.all_tasks() - tasks == set()
    assert _sockets() - descriptors == set()


def _sockets() -> set[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return {target for target in found if target.startswith("socket:")}
