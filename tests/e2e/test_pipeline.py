"""The pipeline end to end: foreign producers, and consumer and reader as processes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Producer

from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import end_offsets, until, until_stored
from tests.support.databases import Database
from tests.support.processes import environment, run_cli, service
from tests.support.topics import make_topic

Folded = tuple[int, datetime, datetime, str]

EXECUTION = "e19d3faf-9f04-9685-e5c0-fbe8d40b96cd"
KEY = EXECUTION.encode()
NEW_YEAR_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z."""


def event(**fields: object) -> dict[str, object]:
    return {
        "executionId": EXECUTION,
        "metadata": {"name": "job.154c848add38e9f9", "namespace": "tenant"},
        "reason": "启动##ActionStart",
        "message": "开始. ## Started.",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "type": "Normal",
        "elemType": "KubeDAG.init",
        "elemId": "job-a",
        "actionName": "create",
    } | fields


def value(**fields: object) -> bytes:
    return json.dumps(event(**fields), ensure_ascii=False).encode()


GOOD = value()
EMPTY = len(value(message=""))
HOSTILE: dict[str, tuple[bytes | None, bytes | None, str]] = {
    "empty": (KEY, b"", "not_json"),
    "null": (KEY, b"null", "invalid_event"),
    "truncated JSON": (KEY, GOOD[:-20], "not_json"),
    "byte order mark": (KEY, b"\xef\xbb\xbf" + GOOD, "not_json"),
    "bad UTF-8": (KEY, GOOD.replace(b"Started", b"Start\xff"), "not_utf8"),
    "10,000 brackets": (KEY, b"[" * 10_000, "not_json"),
    "count 0": (KEY, value(count=0), "invalid_event"),
    "count -1": (KEY, value(count=-1), "invalid_event"),
    "count true": (KEY, value(count=True), "invalid_event"),
    "count 2^63": (KEY, value(count=2**63), "invalid_event"),
    "NUL": (KEY, value(message="a\0b"), "invalid_event"),
    "time without zone": (KEY, value(lastTimestamp="2026-01-01T00:00:00"), "invalid_event"),
    "empty name": (KEY, value(metadata={"name": "", "namespace": "tenant"}), "invalid_event"),
    "null value": (KEY, None, "no_value"),
    "wrong key": (b"another-execution", GOOD, "wrong_key"),
    "1,000,000 bytes": (
        KEY,
        value(message="x" * (1_000_000 - len(value(message="")))),
        "invalid_event",
    ),
}


@asynccontextmanager
async def reader(
    settings: Settings, database: Database, log: Path, port: int
) -> AsyncIterator[str]:
    """Run a reader and give its address."""
    settings = configured(settings, database_url=database.reader, reader_port=port)
    address = f"http://127.0.0.1:{port}"
    async with service("reader", settings, log):

        async def responds() -> bool:
            try:
                async with httpx.AsyncClient() as client:
                    await client.get(address)
            except httpx.TransportError:
                return False
            return True

        await until(responds, "the reader responds")
        yield address


async def listed(address: str) -> list[dict[str, object]]:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{address}/v1/executions/{EXECUTION}/events")
    events: list[dict[str, object]] = answer.raise_for_status().json()
    return events


async def test_hostile_records_become_dead_letters_and_delay_no_others(
    settings: Settings, database: Database, tmp_path: Path, unused_port: int
) -> None:
    assert len(HOSTILE) == 16
    assert len(HOSTILE["1,000,000 bytes"][1] or b"") == 1_000_000
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "partitioner": "murmur2_random",
            "message.max.bytes": 1_048_576,
        }
    )
    for key, content, _ in HOSTILE.values():
        producer.produce(settings.kafka.topic, content, key)
    producer.produce(settings.kafka.topic, GOOD, KEY)
    assert producer.flush(30) == 0

    async with (
        service("consumer", settings, tmp_path / "consumer.log"),
        reader(settings, database, tmp_path / "reader.log", unused_port) as address,
    ):
        await until_stored(settings)
        [good] = await listed(address)
    assert good["count"] == 1
    assert good["message"] == "开始. ## Started."

    env = environment(configured(settings, database_url=database.owner))
    letters = [
        json.loads(line)
        for line in (await run_cli("dead-letters", "list", "--json", env=env)).splitlines()
    ]
    shown = {
        ((letter["key"] or "").encode(), letter["valueBytes"], letter["reason"])
        for letter in letters
    }
    assert shown == {
        (key, None if content is None else len(content), reason)
        for key, content, reason in HOSTILE.values()
    }
    assert len(letters) == len(HOSTILE)
    assert all(letter["detail"] for letter in letters)
    plain = await run_cli("dead-letters", "list", env=env)
    assert len(plain.splitlines()) == len(HOSTILE)


@pytest.mark.parametrize(
    "timestamps", ["LogAppendTime", pytest.param("CreateTime", marks=pytest.mark.more)]
)
async def test_counts_are_exact_after_the_consumer_is_killed(
    settings: Settings, database: Database, tmp_path: Path, timestamps: str
) -> None:
    """100,000 records, three `kill -9` among them, compared with a fold of the topic."""
    settings = configured(settings, topic=f"{settings.kafka.topic}-{timestamps}")
    # By CreateTime the records are older than the default retention, and a check would remove them.
    configs = {"message.timestamp.type": timestamps, "retention.ms": "-1"}
    await make_topic(settings, 3, configs)
    records = 100_000
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": records,
        }
    )
    for number in range(records):
        execution = f"execution-{number * 7919 % 500}"
        content = event(
            executionId=execution,
            metadata={"name": f"job.{number * 104_729 % 97:x}", "namespace": "tenant"},
            message=f"message {number}",
            lastTimestamp=f"2026-01-01T00:00:{number % 60:02}Z",
            count=1 + number % 1000,
        )
        if number % 3 == 0:
            # The record's own timestamp is the default.
            del content["lastTimestamp"]
        producer.produce(
            settings.kafka.topic, json.dumps(content), execution, timestamp=NEW_YEAR_MS + number
        )
    assert producer.flush(60) == 0

    slow = configured(settings, batch_max_records=2_000)
    connection = await asyncpg.connect(database.owner)
    try:
        for kill in range(1, 4):
            # A group of its own need not wait until the session of the killed one expires.
            alone = configured(slow, group=f"{settings.consumer.group}-{kill}")
            async with service("consumer", alone, tmp_path / "consumer.log") as consumer:

                async def passed(part: int = kill * records // 5) -> bool:
                    query = "SELECT coalesce(sum(next_offset), 0) FROM {}.partition_progress"
                    stored = await connection.fetchval(query.format("execution_events"))
                    return bool(stored >= part)

                await until(passed, f"part {kill} of the records is stored")
                consumer.process.kill()
                await consumer.process.wait()
        before = await connection.fetchval(
            "SELECT sum(next_offset) FROM execution_events.partition_progress"
        )
        assert before < records, "the consumer was faster than the kills"
        async with service("consumer", settings, tmp_path / "consumer.log"):
            await until_stored(settings)
        rows = await connection.fetch(
            "SELECT execution_id, name, count, first_timestamp, last_timestamp, message"
            " FROM ops.events_v1"
        )
    finally:
        await connection.close()
    assert {tuple(row)[:2]: tuple(row)[2:] for row in rows} == await fold_of_topic(settings)


async def fold_of_topic(settings: Settings) -> dict[tuple[str, str], Folded]:
    """Read the topic and return count, first, last and latest message of each event."""

    ends = await end_offsets(settings)
    client = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka.bootstrap_servers, auto_offset_reset="earliest"
    )
    await client.start()
    client.assign([TopicPartition(settings.kafka.topic, partition) for partition in ends])
    folded: dict[tuple[str, str], Folded] = {}
    left = sum(ends.values())
    while left:
        for records in (await client.getmany(timeout_ms=1000)).values():
            left -= len(records)
            for record in records:
                content = json.loads(record.value)
                key = (content["executionId"], content["metadata"]["name"])
                moment = (
                    datetime.fromisoformat(content["lastTimestamp"])
                    if "lastTimestamp" in content
                    else datetime.fromtimestamp(record.timestamp / 1000, UTC)
                )
                count, first, last, message = folded.get(key, (0, moment, moment, ""))
                if moment >= last:
                    last, message = moment, content["message"]
                folded[key] = (count + content["count"], min(first, moment), last, message)
    await client.stop()
    return folded
