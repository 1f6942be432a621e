"""The views of the pipeline: rates in the transactions of batches, and the consumers' reports."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from types import SimpleNamespace

import asyncpg
import pytest

from execution_events.consumer import service
from execution_events.errors import FencedError
from execution_events.settings import Settings
from execution_events.store.connection import fetch_one
from execution_events.store.write.batches import Batch, BatchWriter
from execution_events.store.write.dead_letters import DeadLetters, Outcome, Result
from execution_events.store.write.progress import OffsetMove
from execution_events.store.write.reports import PartitionReport, ReportWriter
from tests.support.consumers import consuming, end_offsets, until, until_stored
from tests.support.databases import Database, administrator
from tests.support.occurrences import Fetch, publish
from tests.support.records import batch, log, occurrence, refused

RATES = (
    "SELECT partition, sum(records), sum(occurrences), sum(dead_letters)"
    " FROM ops.event_rate_v1 GROUP BY partition ORDER BY partition"
)
PIPELINE = "SELECT * FROM ops.pipeline_v1 ORDER BY topic, partition"


@pytest.fixture
async def ops(database: Database) -> AsyncIterator[asyncpg.Connection]:
    async with administrator(database.ops) as connection:
        yield connection


@pytest.fixture
async def reports(database: Database) -> AsyncIterator[ReportWriter]:
    """The reports of a consumer of the topic `events`."""
    async with ReportWriter(database.writer, "events", "client@host") as reports:
        yield reports


async def rates(ops: asyncpg.Connection) -> list[tuple[int, ...]]:
    return [tuple(row) for row in await ops.fetch(RATES)]


# Rates.


async def test_rates_count_all_records_and_the_occurrences_of_those_stored(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    counted = log([occurrence(count=5), b"not json", occurrence(count=2)], 1, 0, "source")
    copies = [record._replace(offset=record.offset + 3) for record in counted]
    await writer.store(batch([*counted, *copies]))
    assert await rates(ops) == [(1, 6, 7, 1)]
    await writer.store(batch(log([occurrence(count=3)], 0)))
    await writer.store(batch(log([occurrence(), b""], 1, begin=6)))
    assert await rates(ops) == [(0, 1, 3, 0), (1, 8, 8, 2)]


async def test_the_minute_is_that_of_the_transaction(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    await writer.store(batch(log([occurrence()])))
    row = await fetch_one(
        ops,
        "SELECT minute, last_write FROM ops.event_rate_v1 JOIN ops.pipeline_v1 USING (partition)",
    )
    assert row["minute"] == row["last_write"].replace(second=0, microsecond=0)


async def test_a_batch_that_is_not_stored_is_not_counted(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    await writer.store(batch(log([occurrence()])))
    with pytest.raises(FencedError):
        await writer.store(batch(log([occurrence()])))
    # An offset may move over records that cannot be read.
    await writer.store(Batch([], {0: OffsetMove(1, 9)}))
    assert await rates(ops) == [(0, 1, 1, 0)]


async def test_a_retried_dead_letter_is_not_counted_again(
    writer: BatchWriter, database: Database, ops: asyncpg.Connection
) -> None:
    await writer.store(refused(log([occurrence(count=7)])))
    letter = await ops.fetchval("SELECT id FROM ops.dead_letters_v1")
    async with DeadLetters.open(database.writer) as letters:
        assert await letters.retry(letter) == Outcome(Result.DONE)
    assert await rates(ops) == [(0, 1, 0, 1)]


async def test_two_topics_of_one_database_are_added(
    writer: BatchWriter, database: Database, ops: asyncpg.Connection
) -> None:
    async with BatchWriter(database.writer, "others") as other:
        await other.begin_partition(0, 0, "cluster")
        await other.store(batch(log([occurrence()])))
    await writer.store(batch(log([occurrence()])))
    assert await rates(ops) == [(0, 2, 2, 0)]


async def test_rates_are_purged_after_fourteen_days(
    writer: BatchWriter, fetch: Fetch, ops: asyncpg.Connection
) -> None:
    await fetch(
        "INSERT INTO event_rate SELECT date_trunc('minute', now()) - age, 'events', 0, 1, 1, 0"
        " FROM unnest('{13 days 23:59, 14 days 00:01, 99 days}'::interval[]) AS age"
    )
    await writer.purge_rates()
    [row] = await ops.fetch("SELECT now() - minute FROM ops.event_rate_v1")
    assert row[0] < timedelta(days=14)


# Reports.


async def test_a_report_is_joined_with_the_progress(
    writer: BatchWriter, reports: ReportWriter, ops: asyncpg.Connection
) -> None:
    await reports.write([PartitionReport(0, 10, 1.5, None), PartitionReport(7, None, None, None)])
    await writer.store(batch(log([occurrence()] * 4)))
    rows = await ops.fetch(PIPELINE)
    columns = ("partition", "next_offset", "log_end_offset", "lag", "consumer", "halted")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        (0, 4, 10, 6, "client@host", None),
        (1, 0, None, None, None, None),
        (2, 0, None, None, None, None),
        # Its leader has not answered yet.
        (7, None, None, None, "client@host", None),
    ]
    age = await ops.fetchval("SELECT now() - observed_at FROM ops.pipeline_v1 WHERE partition = 0")
    assert timedelta(seconds=1.5) <= age < timedelta(seconds=60)
    assert {row["topic"] for row in rows} == {"events"}


async def test_lag_is_never_negative(
    writer: BatchWriter, reports: ReportWriter, ops: asyncpg.Connection
) -> None:
    await reports.write([PartitionReport(0, 1, 0, None)])
    await writer.store(batch(log([occurrence()] * 4)))
    assert await ops.fetchval("SELECT lag FROM ops.pipeline_v1 WHERE partition = 0") == 0


async def test_the_next_owner_replaces_the_report_and_keeps_an_end_that_it_does_not_know(
    reports: ReportWriter, database: Database, ops: asyncpg.Connection
) -> None:
    await reports.write([PartitionReport(0, 10, 0, "a reason"), PartitionReport(1, 5, 0, None)])
    before = await ops.fetchval("SELECT observed_at FROM ops.pipeline_v1 WHERE partition = 0")
    async with ReportWriter(database.writer, "events", "client@other") as others:
        await others.write([PartitionReport(0, None, None, None)])
    row = await fetch_one(ops, "SELECT * FROM ops.pipeline_v1 WHERE partition = 0")
    assert (row["log_end_offset"], row["observed_at"]) == (10, before)
    assert (row["consumer"], row["halted"]) == ("client@other", None)
    row = await fetch_one(ops, "SELECT * FROM ops.pipeline_v1 WHERE partition = 1")
    assert row["consumer"] == "client@host"


async def test_a_consumer_reports_while_nothing_arrives(
    settings: Settings, ops: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "socket", SimpleNamespace(gethostname=lambda: "host-1"))
    await publish(settings, range(60))
    ends = await end_offsets(settings)
    async with consuming(settings):
        await until_stored(settings)

        async def well() -> bool:
            rows = await ops.fetch(PIPELINE)
            return {row["partition"]: row["log_end_offset"] for row in rows} == ends

        await until(well, f"the ends {ends} are reported")
        rows = await ops.fetch(PIPELINE)
        assert [row["lag"] for row in rows] == [0, 0, 0]
        assert {row["consumer"] for row in rows} == {"execution-events-consumer@host-1"}
        assert {row["halted"] for row in rows} == {None}
        last = max(row["observed_at"] for row in rows)

        async def again() -> bool:
            return bool(
                await ops.fetchval("SELECT min(observed_at) > $1 FROM ops.pipeline_v1", last)
            )

        await until(again, "each partition is observed again")


async def test_a_halted_partition_has_its_reason(
    settings: Settings, fetch: Fetch, ops: asyncpg.Connection
) -> None:
    await publish(settings, range(30))
    async with consuming(settings):
        await until_stored(settings)
    await fetch("UPDATE partition_progress SET last_hash = '' WHERE partition = 1")
    halted = "SELECT partition, halted FROM ops.pipeline_v1 WHERE halted IS NOT NULL"
    async with consuming(settings):

        async def shown() -> bool:
            return bool(await ops.fetch(halted))

        await until(shown, "a partition is shown as halted")
        [row] = await ops.fetch(halted)
        assert row["partition"] == 1
        assert "is not the one that was stored" in row["halted"]


async def test_a_partition_that_moves_is_reported_by_its_new_owner(
    settings: Settings, ops: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(("first", "second"))
    monkeypatch.setattr(service, "socket", SimpleNamespace(gethostname=lambda: next(names)))

    async def owners() -> set[str | None]:
        return {row["consumer"] for row in await ops.fetch(PIPELINE)}

    first, second = "execution-events-consumer@first", "execution-events-consumer@second"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(consuming(settings))

        async def alone() -> bool:
            return await owners() == {first}

        await until(alone, "the first consumer reports all partitions")
        async with consuming(settings):

            async def shared() -> bool:
                return await owners() == {first, second}

            await until(shared, "both consumers report their partitions")
        await until(alone, "the first consumer reports all partitions again")


async def test_a_report_that_waits_delays_no_batch(
    settings: Settings, database: Database, ops: asyncpg.Connection
) -> None:
    async with consuming(settings), administrator(database.owner) as owner:

        async def reported() -> bool:
            return len(await ops.fetch("SELECT FROM ops.pipeline_v1 WHERE consumer <> ''")) == 3

        await until(reported, "all partitions are reported")
        async with owner.transaction():
            await owner.execute("LOCK TABLE execution_events.partition_report")

            async def waits() -> bool:
                query = (
                    "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted"
                    " AND relation = 'execution_events.partition_report'::regclass)"
                )
                return bool(await owner.fetchval(query))

            await until(waits, "a report waits")
            await publish(settings, range(30))
            await until_stored(settings)
        observed = await ops.fetchval("SELECT max(observed_at) FROM ops.pipeline_v1")

        async def resumed() -> bool:
            query = "SELECT min(observed_at) > $1 FROM ops.pipeline_v1"
            return bool(await ops.fetchval(query, observed))

        await until(resumed, "reports continue")
