"""Faults of one partition, which delay or halt it alone, and verification of stored offsets."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from aiokafka import TopicPartition
from aiokafka.admin.records_to_delete import RecordsToDelete
from prometheus_client import CollectorRegistry

from execution_events.kafka.topic import open_admin
from execution_events.metrics import ConsumerMetrics
from execution_events.projection.batch import DeadLetter
from execution_events.settings import Settings
from execution_events.store.write.batches import Batch, BatchWriter
from tests.support.batches import ZSTD, produce_batch
from tests.support.configuration import configured
from tests.support.consumers import consuming, end_offsets, stored_offsets, until, until_stored
from tests.support.databases import Database
from tests.support.logs import logging_to
from tests.support.occurrences import Fetch, counts, publish, ready
from tests.support.records import NonUtf8Name

PARTITIONS = (0, 1, 2)
CONSUMER = "execution-events consumer"


async def until_others_are_stored(settings: Settings, faulty: int) -> None:
    """Return once all partitions but the `faulty` one are stored up to their ends."""
    ends = await end_offsets(settings)

    async def stored() -> bool:
        now = await stored_offsets(settings)
        return all(now.get(p) == ends[p] for p in PARTITIONS if p != faulty)

    await until(stored, "the other partitions are stored")


async def until_reported(port: int, text: str) -> None:
    """Return once readiness gives a reason with `text`."""

    async def reported() -> bool:
        status, body = await ready(port)
        return status == 503 and text in " ".join(json.loads(body)["reasons"])

    await until(reported, f"readiness reports: {text}")


async def test_an_unreadable_last_stored_record_halts_its_partition_alone(
    settings: Settings, fetch: Fetch, unused_port: int
) -> None:
    settings = configured(settings, management_port=unused_port)
    await publish(settings, range(60))
    async with consuming(settings):
        await until_stored(settings)
    bad = (await stored_offsets(settings))[1]
    await produce_batch(settings, 1, [b"x"], ((NonUtf8Name("name"), b""),))
    # The state after the record was stored and then damaged on the disk.
    await fetch(
        f"UPDATE partition_progress SET next_offset = {bad + 1}, last_offset = {bad},"
        " last_timestamp = 0, last_hash = '' WHERE partition = 1"
    )
    await publish(settings, range(60))

    async with consuming(settings):
        await until_others_are_stored(settings, 1)
        await until_reported(unused_port, f"partition 1 is halted: the batch at offset {bad}")
        # Once retention or an operator has removed the record, nothing is compared with it.
        async with open_admin(settings.kafka) as client:
            await client.delete_records(
                {TopicPartition(settings.kafka.topic, 1): RecordsToDelete(bad + 1)}
            )
        await until_stored(settings)
    assert await counts(fetch) == Counter([*range(60), *range(60)])


async def test_a_batch_beyond_the_limit_halts_its_partition_until_the_limit_is_raised(
    settings: Settings, fetch: Fetch, unused_port: int
) -> None:
    settings = configured(settings, management_port=unused_port, kafka_batch_limit=2**20)
    await publish(settings, range(60))
    bad = (await end_offsets(settings))[1]
    await produce_batch(settings, 1, [bytes(300_000)] * 5, codec=ZSTD)
    await publish(settings, range(60))

    async with consuming(settings):
        await until_others_are_stored(settings, 1)
        await until_reported(
            unused_port, f"partition 1 is halted: the batch at offset {bad} (to offset {bad + 4})"
        )
        assert "expands to 1500" in (await ready(unused_port))[1]
        assert (await stored_offsets(settings))[1] == bad

    async with consuming(configured(settings, kafka_batch_limit=2**21)):
        await until_stored(settings)
    assert await counts(fetch) == Counter([*range(60), *range(60)])
    [row] = await fetch("SELECT count(*) FROM dead_letter")
    assert row["count"] == 5


async def test_a_batch_is_limited_in_bytes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records are highly compressed, and each becomes a dead letter."""
    sizes: list[int] = []
    store = BatchWriter.store

    async def measured(writer: BatchWriter, batch: Batch) -> object:
        refused = [r.outcome for r in batch.records if isinstance(r.outcome, DeadLetter)]
        sizes.append(sum(len(letter.record.value or b"") for letter in refused))
        return await store(writer, batch)

    monkeypatch.setattr(BatchWriter, "store", measured)
    for _ in range(40):
        await produce_batch(settings, 0, [bytes(900_000)], codec=ZSTD)
    async with consuming(settings):
        await until_stored(settings)
    assert sum(sizes) == 40 * 900_000
    assert max(sizes) < 18 * 2**20


@asynccontextmanager
async def frozen_in_copy(database: Database, application: str) -> AsyncIterator[asyncpg.Connection]:
    """Open a session that locks partition 1 and waits for its client in the middle of COPY."""
    released = asyncio.Event()

    async def rows() -> AsyncIterator[bytes]:
        yield b"execution-1\t"
        await released.wait()

    connection = await asyncpg.connect(
        database.writer, server_settings={"application_name": application}
    )
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "UPDATE execution_events.partition_progress SET changed_at = now() WHERE partition = 1"
    )
    copying = asyncio.create_task(
        connection.copy_to_table("event", schema_name="execution_events", source=rows())
    )
    administrator = await asyncpg.connect(database.administrator)
    try:

        async def copies() -> bool:
            found = await administrator.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%'"
                " AND wait_event = 'ClientRead' AND pid = $1",
                connection.get_server_pid(),
            )
            return bool(found)

        await until(copies, "the session waits in COPY")
        yield connection
    finally:
        released.set()
        await asyncio.gather(copying, return_exceptions=True)
        if not connection.is_closed():
            await transaction.rollback()
        await connection.close()
        await administrator.close()


async def until_closed(connection: asyncpg.Connection) -> None:
    closed = asyncio.Event()
    connection.add_termination_listener(lambda _: closed.set())
    await closed.wait()


async def test_the_session_of_a_consumer_frozen_inside_copy_is_ended(
    settings: Settings, database: Database, fetch: Fetch, unused_port: int
) -> None:
    """None of PostgreSQL's timeouts applies there."""
    settings = configured(settings, management_port=unused_port)
    await publish(settings, range(60))
    async with consuming(settings):
        await until_stored(settings)
    await publish(settings, range(60))

    async with frozen_in_copy(database, CONSUMER) as frozen, consuming(settings):
        begun = asyncio.get_running_loop().time()
        await until_others_are_stored(settings, 1)
        assert asyncio.get_running_loop().time() - begun < 10
        await until_reported(unused_port, "another session has locked partition 1")
        await until_stored(settings)
        assert asyncio.get_running_loop().time() - begun < 15
        assert frozen.is_closed()
    assert await counts(fetch) == Counter([*range(60), *range(60)])


async def test_a_session_of_another_command_is_not_ended(
    settings: Settings, database: Database, fetch: Fetch
) -> None:
    await publish(settings, range(60))
    async with consuming(settings):
        await until_stored(settings)
    await publish(settings, range(60))
    before = (await stored_offsets(settings))[1]

    async with consuming(settings):
        async with frozen_in_copy(database, "execution-events dead-letters") as other:
            await until_others_are_stored(settings, 1)
            # Longer than the lock timeout of a consumer's session.
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(until_closed(other), 8)
            assert (await stored_offsets(settings))[1] == before
        await until_stored(settings)
    assert await counts(fetch) == Counter([*range(60), *range(60)])


async def test_commits_lost_in_a_failover_are_restored_without_new_records(
    settings: Settings, fetch: Fetch
) -> None:
    await publish(settings, range(60))
    async with consuming(settings):
        await until_stored(settings)
        ends = await stored_offsets(settings)
        # The state of a standby that was behind: one consistent earlier moment.
        await fetch(
            "WITH e AS (DELETE FROM event), x AS (DELETE FROM execution),"
            " a AS (DELETE FROM action), c AS (DELETE FROM execution_change),"
            " p AS (DELETE FROM producer_progress)"
            " UPDATE partition_progress SET next_offset = 0, last_offset = NULL,"
            " last_timestamp = NULL, last_hash = NULL"
        )
        assert await stored_offsets(settings) != ends
        async with asyncio.timeout(30):
            while await stored_offsets(settings) != ends:
                await asyncio.sleep(0.1)
    assert await counts(fetch) == Counter(range(60))


async def test_records_missing_at_the_beginning_of_a_new_partition_are_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = CollectorRegistry()
    metrics = ConsumerMetrics(registry)
    monkeypatch.setattr("execution_events.consumer.service.ConsumerMetrics", lambda _: metrics)
    await publish(settings, range(60))
    ends = await end_offsets(settings)
    async with open_admin(settings.kafka) as client:
        await client.delete_records(
            {TopicPartition(settings.kafka.topic, 1): RecordsToDelete(ends[1])}
        )
    with logging_to("json") as log:
        async with consuming(settings):
            await until_stored(settings)
        entries = [json.loads(line) for line in log.getvalue().splitlines()]
    [warning] = [entry for entry in entries if entry["event"] == "partition_begins_late"]
    assert warning["level"] == "warning"
    assert (warning["partition"], warning["offset"], warning["unseen"]) == (1, ends[1], ends[1])
    assert registry.get_sample_value("execution_events_unseen_records_total") == ends[1]


async def test_a_producer_batch_above_the_byte_limit_is_read_alone(
    settings: Settings, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both as fetched and as expanded."""
    monkeypatch.setattr("execution_events.consumer.fetcher._BATCH_BYTES", 100_000)
    for codec in (0, ZSTD):
        for _ in range(3):
            await produce_batch(settings, 0, [b"x" * 100_000] * 3, codec=codec)
    await publish(settings, range(30))
    async with consuming(settings):
        await until_stored(settings)
    assert await counts(fetch) == Counter(range(30))
    [row] = await fetch("SELECT count(*) FROM dead_letter")
    assert row["count"] == 18
