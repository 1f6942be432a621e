"""The publisher with wrong clocks, missing partitions, low limits, or no topic."""

import asyncio
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from execution_events import wire
from execution_events.clock import now_ms
from execution_events.embedded import DataDirectory, EmbeddedKafka
from execution_events.errors import RetryableError
from execution_events.kafka.producer import Producer
from execution_events.publisher import Publisher
from execution_events.publisher.delivery import relay, sender
from execution_events.publisher.delivery.drain import drain
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.directory import list_spools
from execution_events.settings import Settings
from tests.support.configuration import CACHE_DIR, configured
from tests.support.consumers import DEADLINE, consuming, until_stored
from tests.support.logs import logged
from tests.support.occurrences import Fetch
from tests.support.published import (
    _records,
    administrator,
    counted,
    events,
    freeze,
    log,
    records,
    silent,
)
from tests.support.spooled import directory_of, opened_spool, with_spool
from tests.support.topics import make_topic

HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS


@pytest.fixture
def spooled(settings: Settings, tmp_path: Path) -> Settings:
    return with_spool(settings, tmp_path)


@asynccontextmanager
async def topic(settings: Settings, partitions: int = 3, **config: str) -> AsyncIterator[Settings]:
    """Create a topic with `config`; the settings for it."""
    settings = configured(settings, topic=f"{settings.kafka.topic}-own")
    configs = {name.replace("_", "."): value for name, value in config.items()}
    assert await make_topic(settings, partitions, configs) is None
    yield settings


def listed(settings: Settings) -> Any:
    [info] = list_spools(directory_of(settings))
    return info.summary


def aged(new: list[PendingRecord], milliseconds: int) -> list[PendingRecord]:
    return [msgspec.structs.replace(r, created_at=r.created_at - milliseconds) for r in new]


def set_clock(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """Set the clock of this process `ahead` milliseconds ahead."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + ahead * 1_000_000)


@pytest.fixture
def producers(monkeypatch: pytest.MonkeyPatch) -> list[Producer]:
    """All producers created."""
    made: list[Producer] = []

    class Counted(Producer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr("execution_events.publisher.delivery.connection.Producer", Counted)
    return made


# Clocks.


async def test_a_record_has_the_time_of_sending_and_its_event_that_of_publishing(
    spooled: Settings,
) -> None:
    before = now_ms()
    new = records(events(30))
    async with topic(spooled, message_timestamp_type="CreateTime") as settings:
        spool = opened_spool(settings)
        spool.commit(aged(new, 20 * DAY_MS), [], limit=0, partition_of=None)
        assert (
            await drain(
                settings.kafka, settings.publisher, spool, timeout=DEADLINE, progress=lambda _: None
            )
            == 0
        )
        found = await _records(settings)
    assert len(found) == 30
    assert all(before <= record.timestamp <= now_ms() for record in found)
    # The value does not depend on the time of the record.
    assert sorted(record.value for record in found) == sorted(record.value for record in new)
    assert {wire.decode(r.key, r.value, 0) for r in found} == {
        wire.decode(r.key, r.value, before) for r in new
    }


async def test_a_record_sent_twice_with_two_times_counts_once(
    settings: Settings, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = records(events(30))

    async with topic(settings, message_timestamp_type="CreateTime") as own, consuming(own):
        for ahead in (0, 1800_000, -HOUR_MS):
            with monkeypatch.context() as patch:
                set_clock(patch, ahead)
                done = asyncio.Event()
                opened = sender.Sender(
                    own.kafka,
                    "urn:test:twice",
                    acknowledged=lambda *_, done=done: done.set(),
                    refused=lambda *_: None,
                    expired=lambda _: None,
                )
                for sequence, record in enumerate(new, 1):
                    opened.submit(
                        msgspec.structs.replace(
                            record, sequence=sequence, partition=0, attempted_at=now_ms()
                        )
                    )
                async with asyncio.timeout(DEADLINE):
                    while opened.pending:
                        await asyncio.sleep(0.01)
                await opened.close()
        await until_stored(own)
        found = await _records(own)
    assert len(found) == 90
    assert len({record.timestamp // (10 * 60_000) for record in found}) == 3
    rows = await fetch("SELECT name, count FROM event")
    assert {row["name"]: row["count"] for row in rows} == {e.name: e.count for e in events(30)}


async def test_a_clock_ahead_keeps_events_in_the_spool_with_the_error(
    spooled: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with topic(spooled, message_timestamp_type="CreateTime") as settings:
        published = events(300)
        async with Publisher(settings) as publisher:
            with monkeypatch.context() as patch:
                set_clock(patch, 2 * HOUR_MS)
                await asyncio.gather(*map(publisher.publish, published[:200]))
                with pytest.raises(RetryableError, match="not acknowledged all"):
                    await publisher.flush(2)
                async with asyncio.timeout(DEADLINE):
                    while not listed(settings).errors:
                        await asyncio.sleep(0.05)
                found = listed(settings)
                assert (found.pending, found.refused, found.held) == (200, 0, 0)
                for error in found.errors.values():
                    assert "refuses the timestamp of this machine's clock" in error
                    assert "out of acceptable range. (InvalidTimestampError)" in error
                assert await log(settings) == []
            await asyncio.gather(*map(publisher.publish, published[200:]))
            await publisher.flush(DEADLINE)
            async with asyncio.timeout(DEADLINE):
                while listed(settings).errors:
                    await asyncio.sleep(0.05)
        assert len(counted(await log(settings))) == 300
    blocked = logged(caplog, "partitions_blocked")
    assert len(blocked) == 1
    assert "out of acceptable range. (InvalidTimestampError)" in blocked[0]["error"]
    assert not logged(caplog, "producer_replaced")


async def test_a_clock_ahead_leaves_events_in_the_spool_at_closing(
    spooled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with topic(spooled, message_timestamp_type="CreateTime") as settings:
        with monkeypatch.context() as patch:
            set_clock(patch, 2 * HOUR_MS)
            publisher = await Publisher(settings).__aenter__()
            await asyncio.gather(*map(publisher.publish, events(20)))
            assert await publisher.close() == 20
        found = listed(settings)
        assert (found.pending, found.refused) == (20, 0)
        assert found.errors
        assert all("clock" in error for error in found.errors.values())
        spool = opened_spool(settings)
        assert (
            await drain(
                settings.kafka, settings.publisher, spool, timeout=DEADLINE, progress=lambda _: None
            )
            == 0
        )
        assert len(counted(await log(settings))) == 20


async def test_a_clock_ahead_is_the_error_without_a_spool(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with topic(settings, message_timestamp_type="CreateTime") as own:
        own = configured(own, publish_timeout=1, close_timeout=1)
        [event] = events(1)
        async with Publisher(own) as publisher:
            with monkeypatch.context() as patch:
                set_clock(patch, 2 * HOUR_MS)
                with pytest.raises(RetryableError, match=r"for 1 s: .*this machine's clock"):
                    await publisher.publish(event)
            await publisher.flush(DEADLINE)
        assert len(counted(await log(own))) == 1


async def test_a_running_worker_holds_events_attempted_too_long_ago(
    own_kafka: EmbeddedKafka, spooled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = configured(spooled, kafka_bootstrap_servers=own_kafka.bootstrap_servers)
    first, *others = events(60, executions=1)
    async with topic(own, message_timestamp_type="LogAppendTime") as settings:
        async with Publisher(settings) as publisher:
            await publisher.publish(events(1, prefix="before")[0])
            await publisher.flush(DEADLINE)
            with silent(own_kafka):
                # This one is in flight, and the others are queued.
                await publisher.publish(first)
                await asyncio.gather(*map(publisher.publish, others))
                set_clock(monkeypatch, 31 * DAY_MS)
            await publisher.publish(events(1, prefix="after")[0])
            await publisher.flush(DEADLINE)
            async with asyncio.timeout(DEADLINE):
                while listed(settings).pending:
                    await asyncio.sleep(0.05)
            found = listed(settings)
            names = {record.name for record in counted(await log(settings))}
            assert {"before.0", "after.0"} <= names
            assert found.held == 62 - len(names) >= 50
        monkeypatch.undo()
        spool = opened_spool(settings)
        assert spool.held == found.held
        spool.accept_duplicates()
        assert (
            await drain(
                settings.kafka, settings.publisher, spool, timeout=DEADLINE, progress=lambda _: None
            )
            == 0
        )
        by_name = {record.name for record in await log(settings)}
        assert len(by_name) == len(await log(settings)) == 62


async def test_a_worker_frozen_during_a_request_does_not_repeat_it(
    own_kafka: EmbeddedKafka, spooled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka would, on its new connection, because the batch is unacknowledged."""
    own = configured(spooled, kafka_bootstrap_servers=own_kafka.bootstrap_servers)
    async with topic(own, message_timestamp_type="LogAppendTime") as settings:
        async with Publisher(settings) as publisher:
            await publisher.publish(events(1, prefix="before")[0])
            await publisher.flush(DEADLINE)
            freeze(own_kafka)
            try:
                await publisher.publish(events(1)[0])
                async with asyncio.timeout(DEADLINE):
                    while not publisher._delivery._sender._connection._producer._requests:  # type: ignore[union-attr]
                        await asyncio.sleep(0.01)
                set_clock(monkeypatch, 31 * DAY_MS)
            finally:
                own_kafka.process.kill(signal.SIGKILL)
                await own_kafka.stop()
                await own_kafka.start()
            await publisher.publish(events(1, prefix="after")[0])
            await publisher.flush(DEADLINE)
            async with asyncio.timeout(DEADLINE):
                while listed(settings).pending:
                    await asyncio.sleep(0.05)
        assert listed(settings).held == 1
        assert {record.name for record in await log(settings)} == {"before.0", "after.0"}


# Missing partitions.


async def stranded(settings: Settings, number: int, partitions: int = 40) -> None:
    """Create a spool with `number` records attempted on a topic of `partitions` partitions."""
    with opened_spool(settings) as spool:
        fetched = spool.commit(
            records(events(number, executions=number)),
            [],
            limit=number,
            partition_of=lambda key: int(key.rpartition(b"-")[2]) % partitions,
        )
        assert len(fetched) == number


async def test_records_of_missing_partitions_delay_no_other_and_report_the_error(
    spooled: Settings, producers: list[Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_WINDOW", 100)
    await stranded(spooled, 1200)
    async with Publisher(spooled) as publisher:
        async with asyncio.timeout(DEADLINE):
            for event in events(300, prefix="later"):
                await publisher.publish(event)
            while listed(spooled).pending > 1200 - 90:
                await asyncio.sleep(0.05)
        assert len(listed(spooled).errors) == 37
        assert await publisher.close() == 1200 - 90
    assert len(producers) == 1
    assert set(listed(spooled).errors) == set(range(3, 40))
    [error] = set(listed(spooled).errors.values())
    assert "has only 3 partitions: `execution-events spool drain --accept-duplicates`" in error
    assert len(counted(await log(spooled))) == 300 + 90
    for reassign, remaining in ((False, 1110), (True, 0)):
        spool = opened_spool(spooled)
        assert remaining == await drain(
            spooled.kafka,
            spooled.publisher,
            spool,
            timeout=2,
            progress=lambda _: None,
            reassign_partitions=reassign,
        )
    assert len(counted(await log(spooled))) == 1500
    assert listed(spooled).errors == {}


# Limits of the topic.


@pytest.mark.parametrize("spool", [False, True])
async def test_batches_above_the_limit_of_the_topic_are_split_by_one_producer(
    settings: Settings,
    spooled: Settings,
    producers: list[Producer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spool: bool,
) -> None:
    sizes = []
    send_batch = Producer.send_batch

    async def counting(self: Producer, batch: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(batch.record_count())
        return await send_batch(self, batch, *arguments, **options)

    monkeypatch.setattr(Producer, "send_batch", counting)
    hard = "".join(chr(0x4E00 + number * 7919 % 20000) for number in range(700))
    published = [
        msgspec.structs.replace(event, message=f"{number * 7919 % 10007}{hard[number:]}")
        for number, event in enumerate(events(600))
    ]
    base = spooled if spool else settings
    async with topic(base, partitions=1, max_message_bytes="4000") as own:
        async with Publisher(own) as publisher:
            await asyncio.gather(*map(publisher.publish, published))
            await publisher.flush(DEADLINE)
            first = len(sizes)
            await asyncio.gather(*map(publisher.publish, events(600, prefix="second")))
            await publisher.flush(DEADLINE)
        assert len(counted(await log(own))) == 1200
    assert len(producers) == 1
    assert first < 200
    # The limit found applies to later batches.
    assert len(sizes) - first < 100
    assert not logged(caplog, "producer_replaced")


# Without the topic.


@pytest.fixture(scope="module")
async def creating_kafka() -> AsyncIterator[EmbeddedKafka]:
    """A broker that creates unknown topics and removes old records at once."""
    with tempfile.TemporaryDirectory(prefix="execution-events-tests-") as parent:
        async with DataDirectory(Path(parent) / "data") as directory:
            settings = {
                "auto.create.topics.enable": "true",
                "log.retention.check.interval.ms": "200",
                "log.initial.task.delay.ms": "0",
            }
            async with EmbeddedKafka(directory, CACHE_DIR, settings=settings) as kafka:
                yield kafka


async def test_a_missing_topic_is_not_created(
    creating_kafka: EmbeddedKafka, settings: Settings, spooled: Settings
) -> None:
    address = creating_kafka.bootstrap_servers
    own = configured(settings, kafka_bootstrap_servers=address)
    with pytest.raises(RetryableError, match=f"topic {own.kafka.topic} does not exist: run"):
        await Publisher(own).__aenter__()
    own = configured(spooled, kafka_bootstrap_servers=address)
    async with administrator(own) as client, Publisher(own) as publisher:
        await publisher.publish(events(1)[0])
        async with asyncio.timeout(DEADLINE):
            while not listed(own).errors:
                await asyncio.sleep(0.05)
        assert "does not exist: run `execution-events" in listed(own).errors[-1]
        assert own.kafka.topic not in await client.list_topics()
        await make_topic(own, 3)
        await publisher.flush(DEADLINE)
    assert len(await log(own)) == 1


async def test_an_old_spool_is_not_lost_to_retention(
    creating_kafka: EmbeddedKafka, spooled: Settings
) -> None:
    own = configured(spooled, kafka_bootstrap_servers=creating_kafka.bootstrap_servers)
    async with topic(
        own, partitions=2, message_timestamp_type="CreateTime", retention_ms=str(HOUR_MS)
    ) as own:
        spool = opened_spool(own)
        spool.commit(aged(records(events(5)), 2 * DAY_MS), [], limit=5, partition_of=lambda _: 0)
        spool.close()
        spool = opened_spool(own)
        assert (
            await drain(own.kafka, own.publisher, spool, timeout=DEADLINE, progress=lambda _: None)
            == 0
        )
        # A record as old in the other partition is removed afterwards.
        async with AIOKafkaProducer(bootstrap_servers=own.kafka.bootstrap_servers) as other:
            await other.send_and_wait(
                own.kafka.topic, b"", partition=1, timestamp_ms=now_ms() - 2 * DAY_MS
            )
        other_partition = TopicPartition(own.kafka.topic, 1)
        async with administrator(own) as client, asyncio.timeout(DEADLINE):
            while await start_of(client, other_partition) == 0:
                await asyncio.sleep(0.1)
            assert await start_of(client, TopicPartition(own.kafka.topic, 0)) == 0


async def start_of(client: Any, partition: TopicPartition) -> int:
    """Return the first offset of a partition."""
    answer = await client.delete_records({partition: RecordsToDelete(before_offset=0)})
    return int(answer[partition])
