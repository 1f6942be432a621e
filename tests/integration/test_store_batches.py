"""Batches in the database: rows, fencing, watermarks and dead letters of one transaction."""

import asyncio
from datetime import timedelta
from random import Random
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from execution_events import wire
from execution_events.errors import (
    BatchRefusedError,
    FencedError,
    PartitionsLockedError,
    RetryableError,
)
from execution_events.events import COUNT_MAX, RECORD_COUNT_MAX
from execution_events.projection.batch import read
from execution_events.projection.fold import fold
from execution_events.store.connection import fetch_one
from execution_events.store.write import batches
from execution_events.store.write.batches import Batch, BatchWriter
from execution_events.store.write.progress import OffsetMove
from tests.faults.proxy import Proxy
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database
from tests.support.records import EPOCH, LogRecord, batch, log, occurrence

TOPIC = "events"


async def stored_events(owner: asyncpg.Connection) -> list[tuple[Any, ...]]:
    rows = await owner.fetch(
        "SELECT execution_id, namespace, name, object_name,"
        " body_text(body, 'involvedObject', 'namespace'), reason, body_text(body, 'message'),"
        " list_position, first_timestamp, last_timestamp, count,"
        " type, elem_type, elem_id, action_name FROM event ORDER BY execution_id, namespace, name"
    )
    return [tuple(row) for row in rows]


async def stored_offsets(writer: BatchWriter) -> dict[int, int]:
    positions = await writer.stored_positions([0, 1, 2])
    return {partition: position.next_offset for partition, position in positions.items()}


@pytest.mark.parametrize("seed", range(5))
async def test_any_split_of_a_log_stores_the_rows_of_its_fold(
    writer: BatchWriter, owner: asyncpg.Connection, seed: int
) -> None:
    rng = Random(seed)
    occurrences = []
    for number in range(400):
        last = EPOCH + timedelta(microseconds=rng.randrange(20))
        occurrences.append(
            occurrence(
                execution_id=f"execution-{rng.randrange(3)}",
                namespace=rng.choice(["tenant", "租户"]),
                name=f"object.{rng.randrange(8)}",
                reason=f"reason-{number}",
                message=f"消息-{number}",
                type=rng.choice(["Normal", "Warning"]),
                elem_id=f"job-{number}",
                first_timestamp=last - timedelta(seconds=rng.randrange(5)),
                last_timestamp=last,
                count=rng.choice([1, 2, RECORD_COUNT_MAX]),
            )
        )
    records = log(occurrences)
    while records:
        size = rng.randint(1, 60)
        await writer.store(batch(records[:size]))
        records = records[size:]

    expected = [
        (
            *identity,
            event.latest.object_name,
            event.latest.object_namespace,
            event.latest.reason,
            event.latest.message,
            event.list_position,
            event.first_timestamp,
            event.latest.last_timestamp,
            event.count,
            event.latest.type,
            event.latest.elem_type,
            event.latest.elem_id,
            event.latest.action_name,
        )
        for identity, event in sorted(fold(occurrences).items())
    ]
    assert await stored_events(owner) == expected
    executions = await owner.fetch(
        "SELECT execution_id, namespace, events, occurrences, first_timestamp, last_timestamp"
        " FROM execution ORDER BY execution_id, namespace"
    )
    by_execution: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for row in expected:
        by_execution.setdefault(row[:2], []).append(row)
    assert [tuple(row) for row in executions] == [
        (
            *key,
            len(rows),
            sum(row[10] for row in rows),
            min(row[8] for row in rows),
            max(row[9] for row in rows),
        )
        for key, rows in sorted(by_execution.items())
    ]


async def test_sums_stop_at_their_maximum(writer: BatchWriter, owner: asyncpg.Connection) -> None:
    await writer.store(batch(log([occurrence()])))
    await owner.execute("UPDATE event SET count = $1", COUNT_MAX - 1)
    await owner.execute("UPDATE action SET attempts = $1", COUNT_MAX - 1)
    await owner.execute(
        "UPDATE execution SET occurrences = $1, revision = revision + 1", COUNT_MAX - 1
    )

    await writer.store(batch(log([occurrence(count=2)], begin=1)))

    assert await owner.fetchval("SELECT count FROM event") == COUNT_MAX
    assert await owner.fetchval("SELECT attempts FROM action") == COUNT_MAX
    assert await owner.fetchval("SELECT occurrences FROM execution") == COUNT_MAX


async def test_a_stored_batch_is_fenced_when_it_is_stored_again(
    writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    """A commit whose reply was lost."""
    once = batch(log([occurrence(), b"not json"], source="worker"))
    await writer.store(once)
    before = [await stored_events(owner), await owner.fetch("SELECT * FROM execution")]

    with pytest.raises(FencedError):
        await writer.store(once)

    assert [await stored_events(owner), await owner.fetch("SELECT * FROM execution")] == before
    assert await owner.fetchval("SELECT count(*) FROM dead_letter") == 1
    assert await stored_offsets(writer) == {0: 2, 1: 0, 2: 0}


async def test_one_fenced_partition_drops_the_whole_batch(
    writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    await writer.store(batch(log([occurrence()], partition=1)))
    records = [*log([occurrence()], partition=0), *log([occurrence()], partition=1)]
    both = Batch([read(record) for record in records], {0: OffsetMove(0, 1), 1: OffsetMove(0, 1)})

    with pytest.raises(FencedError, match=r"partitions 1$"):
        await writer.store(both)

    assert await owner.fetchval("SELECT sum(count) FROM event") == 1
    assert await stored_offsets(writer) == {0: 0, 1: 1, 2: 0}


async def test_two_writers_store_a_batch_once(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    same = batch(log([occurrence()]))
    async with BatchWriter(database.writer, TOPIC) as zombie:
        await zombie.connect()
        await writer.store(same)
        with pytest.raises(FencedError):
            await zombie.store(same)
        # The fenced writer can store its next batch.
        await zombie.store(batch(log([occurrence()], begin=1)))
    assert await owner.fetchval("SELECT count FROM event") == 2


async def test_an_offset_of_an_earlier_epoch_is_fenced(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    """The consumer was frozen while the topic was re-created; the offset has the same number."""
    of_old_log = batch(log([occurrence()]))
    await writer.accept_log(0, OffsetMove(0, 0), "cluster")
    with pytest.raises(FencedError):
        await writer.store(of_old_log)
    assert await owner.fetchval("SELECT count(*) FROM event") == 0
    await writer.store(Batch(of_old_log.records, {0: OffsetMove(0, 1, epoch=1)}))
    with pytest.raises(FencedError):
        await writer.accept_log(0, OffsetMove(1, 0), "cluster")
    assert await owner.fetchval("SELECT count FROM event") == 1


async def test_locked_partitions_are_reported_without_waiting(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    records = [*log([occurrence()], partition=0), *log([occurrence()], partition=1)]
    both = Batch([read(record) for record in records], {0: OffsetMove(0, 1), 1: OffsetMove(0, 1)})
    async with owner.transaction():
        await owner.execute("SELECT FROM partition_progress WHERE partition = 1 FOR UPDATE")
        with pytest.raises(PartitionsLockedError) as caught:
            await writer.store(both)
        assert caught.value.partitions == {1}
        assert await writer.locked_partitions([0, 1]) == {1}
        assert await writer.end_lock_holders([0, 1]) == []
        await writer.store(both.without({1}))
    assert await stored_offsets(writer) == {0: 1, 1: 0, 2: 0}
    await writer.store(both.without({0}))
    assert await owner.fetchval("SELECT count FROM event") == 2


async def test_an_error_rolls_the_whole_batch_back(
    writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    await owner.execute("ALTER TABLE event ADD CONSTRAINT no_bombs CHECK (reason <> 'bomb')")
    bomb = occurrence(name="object.2", reason="bomb")

    with pytest.raises(BatchRefusedError, match="no_bombs"):
        await writer.store(batch(log([occurrence(), bomb, b"not json"], source="worker")))

    for table in ("event", "execution", "dead_letter", "producer_progress"):
        assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 0, table
    assert await stored_offsets(writer) == {0: 0, 1: 0, 2: 0}


@pytest.mark.usefixtures("writer")
async def test_a_batch_without_a_reply_fails_at_its_timeout(
    database: Database, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply to its cancellation, for which asyncpg would wait, does not arrive either."""
    monkeypatch.setattr(batches, "_COMMAND_TIMEOUT", 3)
    url = urlsplit(database.writer)
    credentials = url.netloc.rpartition("@")[0]

    async def waits() -> bool:
        return bool(await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    async with Proxy(url.port or 5432) as proxy:
        through = url._replace(netloc=f"{credentials}@127.0.0.1:{proxy.port}").geturl()
        async with BatchWriter(through, TOPIC) as frozen, owner.transaction():
            await frozen.connect()
            await owner.execute("LOCK TABLE event")
            storing = asyncio.create_task(frozen.store(batch(log([occurrence()]))))
            await until(waits, "the batch waits for the table")
            async with proxy.black_hole(), asyncio.timeout(DEADLINE):
                begun = asyncio.get_running_loop().time()
                with pytest.raises(RetryableError):
                    await storing
                # A rollback would wait for as long again.
                assert asyncio.get_running_loop().time() - begun < 5.5


def test_halves_divide_the_move_of_the_partition_in_both() -> None:
    records = [*log([occurrence()] * 2), *log([occurrence()] * 4, partition=1, begin=7)]
    whole = Batch(
        [read(record) for record in records],
        {0: OffsetMove(0, 2), 1: OffsetMove(5, 11), 2: OffsetMove(0, 3)},
    )
    left, right = whole.halves()
    assert left == (
        whole.records[:3],
        {0: OffsetMove(0, 2), 1: OffsetMove(5, 8), 2: OffsetMove(0, 3)},
    )
    assert right == (whole.records[3:], {1: OffsetMove(8, 11)})


async def test_resent_records_count_once(writer: BatchWriter, owner: asyncpg.Connection) -> None:
    records = log([occurrence(), b"not json", occurrence()], source="worker")
    await writer.store(batch(records))
    copies = [record._replace(offset=record.offset + 3) for record in records]

    projection = await writer.store(batch(copies))

    assert projection.duplicates == 3
    assert await owner.fetchval("SELECT count FROM event") == 2
    assert await owner.fetchval("SELECT count(*) FROM dead_letter") == 1
    progress = await fetch_one(owner, "SELECT partition, source, sequence FROM producer_progress")
    assert tuple(progress) == (0, "worker", 2)


async def test_duplicates_leave_the_revision_alone(
    writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    [record] = log([occurrence()], source="worker")
    await writer.store(batch([record]))
    revision = await owner.fetchval("SELECT revision FROM execution")

    await writer.store(batch([record._replace(offset=1)]))
    assert await owner.fetchval("SELECT revision FROM execution") == revision

    await writer.store(batch(log([occurrence()], begin=2)))
    assert await owner.fetchval("SELECT revision FROM execution") > revision


async def test_a_source_has_a_watermark_for_each_partition(
    writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    for partition in (0, 1):
        records = log([occurrence()], partition=partition, source="worker")
        assert (await writer.store(batch(records))).duplicates == 0
    assert await owner.fetchval("SELECT count FROM event") == 2


async def test_a_dead_letter_holds_the_record_unchanged(
    writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    headers = (("trace", b"\x00\xff"), ("nul\0name", None), ("trace", b""))
    record = LogRecord(2, 0, 1_700_000_000_123, b"\xff\x00key", b"\x00\xfe", headers)

    await writer.store(batch([record]))

    row = await fetch_one(
        owner,
        "SELECT topic, partition, record_offset, record_timestamp, key, value, header_names,"
        " header_values, reason FROM dead_letter",
    )
    assert tuple(row) == (
        TOPIC,
        2,
        0,
        1_700_000_000_123,
        b"\xff\x00key",
        b"\x00\xfe",
        [b"trace", b"nul\0name", b"trace"],
        [b"\x00\xff", None, b""],
        wire.NOT_UTF8,
    )


async def test_a_partition_moves_without_records(writer: BatchWriter) -> None:
    await writer.store(Batch([], {0: OffsetMove(0, 7)}))
    assert await stored_offsets(writer) == {0: 7, 1: 0, 2: 0}


async def test_no_index_has_a_column_that_recurrences_change(
    owner: asyncpg.Connection,
) -> None:
    """Such an index would prevent HOT updates."""
    # A predicate counts like a column.
    columns = await owner.fetch(
        "SELECT DISTINCT attname FROM pg_index JOIN pg_depend"
        " ON pg_depend.classid = 'pg_class'::regclass AND objid = indexrelid"
        " AND refobjid = indrelid AND refobjsubid > 0"
        " JOIN pg_attribute ON attrelid = indrelid AND attnum = refobjsubid"
        " WHERE indrelid = ANY ('{event, execution, action}'::regclass[])"
        " UNION SELECT attname FROM pg_index JOIN pg_attribute"
        " ON attrelid = indrelid AND attnum = ANY (indkey)"
        " WHERE indrelid = ANY ('{event, execution, action}'::regclass[])"
    )
    assert {row["attname"] for row in columns} == {
        # The identity, and what the first record sets.
        *("execution_id", "namespace", "name", "list_position", "created_at", "object_name"),
        # Recurrences are of one action.
        *("element_hash", "action_key", "kind"),
        # They change when an action ends or begins again, and at its first retry.
        *("state", "finished", "duration_seconds", "retried"),
    }
