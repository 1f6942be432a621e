"""The public views: their columns and meanings are a contract."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from execution_events import wire
from execution_events.events import COUNT_MAX, Occurrence
from execution_events.projection.batch import read
from execution_events.projection.states import STATE_OF_REASON
from execution_events.publisher import lifecycle
from execution_events.store.connection import fetch_one
from execution_events.store.write.batches import Batch, BatchWriter
from execution_events.store.write.progress import OffsetMove
from tests.support.databases import Database, administrator
from tests.support.records import EPOCH, LogRecord, batch, log, occurrence

TOPIC = "events"

COLUMNS = {
    "events_v1": [
        "execution_id text",
        "namespace text",
        "name text",
        "object_name text",
        "object_namespace text",
        "reason text",
        "reason_zh text",
        "reason_code text",
        "message text",
        "message_zh text",
        "message_en text",
        "first_timestamp timestamp with time zone",
        "last_timestamp timestamp with time zone",
        "count bigint",
        "type text",
        "elem_type text",
        "elem_id text",
        "action_name text",
    ],
    "executions_v1": [
        "execution_id text",
        "namespace text",
        "events bigint",
        "occurrences bigint",
        "first_timestamp timestamp with time zone",
        "last_timestamp timestamp with time zone",
        "created_at timestamp with time zone",
        "changed_at timestamp with time zone",
        "revision bigint",
    ],
    "elements_v1": [
        "execution_id text",
        "namespace text",
        "object_name text",
        "elem_type text",
        "elem_id text",
        "state text",
        "action_name text",
        "started timestamp with time zone",
        "finished timestamp with time zone",
        "duration interval",
        "attempts bigint",
    ],
    "pipeline_v1": [
        "topic text",
        "partition integer",
        "offset bigint",
        "last_write timestamp with time zone",
        "age interval",
    ],
    "dead_letters_v1": [
        "id bigint",
        "topic text",
        "partition integer",
        "offset bigint",
        "record_timestamp timestamp with time zone",
        "reason text",
        "detail text",
        "refused_at timestamp with time zone",
        "key_bytes integer",
        "value_bytes integer",
        "key bytea",
        "value bytea",
        "state text",
        "attempts integer",
        "last_attempt_at timestamp with time zone",
        "last_reason text",
        "last_detail text",
        "retried_at timestamp with time zone",
        "discarded_at timestamp with time zone",
        "truncated boolean",
        "value_sha256 bytea",
    ],
}
"""Dashboards rely on these columns; new ones are added at the end."""


@pytest.fixture
async def ops(database: Database) -> AsyncIterator[asyncpg.Connection]:
    async with administrator(database.ops) as connection:
        yield connection


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def step(code: str, seconds: float = 0, **fields: object) -> Occurrence:
    """Return an event of one element, named by its reason and time."""
    defaults = {
        "name": f"object.{code}-{seconds:g}",
        "reason": f"原因##{code}",
        "first_timestamp": at(seconds),
        "last_timestamp": at(seconds),
    }
    return occurrence(**(defaults | fields))


@pytest.mark.parametrize("view", COLUMNS)
async def test_a_view_has_these_columns_in_this_order(ops: asyncpg.Connection, view: str) -> None:
    rows = await ops.fetch(
        "SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        f"ops.{view}",
    )
    assert [row[0] for row in rows] == COLUMNS[view]


async def test_every_view_and_column_has_a_comment(ops: asyncpg.Connection) -> None:
    rows = await ops.fetch(
        "SELECT relname, attname, coalesce(col_description(pg_class.oid, attnum), '') AS column,"
        " coalesce(obj_description(pg_class.oid, 'pg_class'), '') AS view"
        " FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid"
        " WHERE relnamespace = 'ops'::regnamespace AND attnum > 0 AND NOT attisdropped"
    )
    assert {row["relname"] for row in rows} >= COLUMNS.keys()
    silent = [
        f"{row['relname']}.{row['attname']}" for row in rows if not (row["column"] and row["view"])
    ]
    assert silent == []


async def test_bilingual_texts_are_split_at_the_first_separator(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    halves = {
        "启动##ActionStart": ("启动", "ActionStart"),
        "完成 ## It is done.": ("完成", "It is done."),
        "  开始  ##  It begins.  ": ("开始", "It begins."),
        "plain": ("plain", "plain"),
        "a # b": ("a # b", "a # b"),
        "a##b##c": ("a", "b##c"),
        "a###b": ("a", "#b"),
        "##b": ("", "b"),
        "a##": ("a", ""),
        "##": ("", ""),
    }
    occurrences = [
        occurrence(name=f"object.{number}", reason=text, message=text)
        for number, text in enumerate(halves)
    ]
    await writer.store(batch(log([*occurrences, occurrence(name="object.x", message="")])))

    rows = await ops.fetch(
        "SELECT reason, reason_zh, reason_code, message, message_zh, message_en"
        " FROM ops.events_v1 WHERE message <> ''"
    )
    assert {row[0]: tuple(row[1:3]) for row in rows} == halves
    assert {row[3]: tuple(row[4:6]) for row in rows} == halves
    empty = await fetch_one(
        ops, "SELECT message_zh, message_en FROM ops.events_v1 WHERE message = ''"
    )
    assert tuple(empty) == ("", "")


async def test_an_event_has_the_values_of_its_fold(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    first = occurrence(first_timestamp=at(-0.5), count=2)
    later = occurrence(
        last_timestamp=at(1.000001), object_name="o", object_namespace="p", message="m", count=3,
        type="Warning", elem_type="t", elem_id="i", action_name="a",
    )  # fmt: skip
    await writer.store(batch(log([later, first])))
    assert tuple(await fetch_one(ops, "SELECT * FROM ops.events_v1")) == (
        "execution-1",
        "tenant",
        "object.1",
        "o",
        "p",
        "启动##ActionStart",
        "启动",
        "ActionStart",
        "m",
        "m",
        "m",
        at(-0.5),
        at(1.000001),
        5,
        "Warning",
        "t",
        "i",
        "a",
    )


async def test_an_executions_counters_are_those_of_its_events(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    query = (
        "SELECT namespace, events, occurrences, first_timestamp, last_timestamp, created_at,"
        " changed_at, revision FROM ops.executions_v1"
        " WHERE execution_id = 'execution-1' ORDER BY namespace"
    )
    others = [occurrence(execution_id="execution-2"), occurrence(namespace="zone")]
    await writer.store(batch(log([step("A", 5), step("B", 6, count=2), *others])))
    before, zone = await ops.fetch(query)
    assert tuple(before)[:5] == ("tenant", 2, 3, at(5), at(6))
    assert before["created_at"] == before["changed_at"]

    await writer.store(batch(log([step("A", 5), step("C", 1), step("C", 9, name="d")], begin=4)))
    after, zone_after = await ops.fetch(query)
    assert tuple(after)[:5] == ("tenant", 4, 6, at(1), at(9))
    assert after["created_at"] == before["created_at"]
    assert after["changed_at"] > before["changed_at"]
    assert after["revision"] > before["revision"]
    assert zone_after == zone


async def test_the_reason_code_decides_an_elements_state(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    states = {reason.text: STATE_OF_REASON[reason.code] for reason in lifecycle.CATALOGUE} | {
        "启动##ActionStart": "running",
        "重试##ActionRetry": "running",
        "成功##SuccessfulFinish": "succeeded",
        "失败##ActionFailed": "failed",
        "取消##ActionCancelled": "cancelled",
        "超时 ## ActionTimeout": "timed_out",
        "ActionStart": "running",
    }
    others = ["镜像##PullImage", "启动##actionstart", "ActionStart##启动", "a##ActionFailed##b"]
    await writer.store(
        batch(log([step(reason, reason=reason, elem_id=reason) for reason in [*states, *others]]))
    )
    rows = await ops.fetch("SELECT elem_id, state FROM ops.elements_v1")
    assert {row["elem_id"]: row["state"] for row in rows} == states


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([("ActionStart", 0), ("ActionFailed", 1), ("ActionRetry", 2)], "running"),
        ([("ActionStart", 0), ("ActionFailed", 1), ("SuccessfulFinish", 2)], "succeeded"),
        ([("SuccessfulFinish", 2), ("ActionFailed", 1), ("ActionStart", 0)], "succeeded"),
        ([("ActionFailed", 1), ("ActionStart", 1.000001)], "running"),
        ([("ActionFailed", 1), ("PullImage", 2)], "failed"),
    ],
    ids=lambda value: "-".join(f"{c}@{t:g}" for c, t in value) if isinstance(value, list) else None,
)
async def test_the_latest_event_decides_in_any_order_of_arrival(
    writer: BatchWriter, ops: asyncpg.Connection, steps: list[tuple[str, float]], state: str
) -> None:
    await writer.store(batch(log([step(code, seconds) for code, seconds in steps])))
    assert await ops.fetchval("SELECT state FROM ops.elements_v1") == state


@pytest.mark.parametrize("names", [("object.1", "object.2"), ("object.2", "object.1")])
async def test_a_terminal_state_wins_over_a_start_at_the_same_time(
    writer: BatchWriter, ops: asyncpg.Connection, names: tuple[str, str]
) -> None:
    end = step("ActionCancelled", name=names[0], action_name="delete")
    start = step("ActionStart", name=names[1], action_name="create")
    await writer.store(batch(log([end, start])))
    row = await fetch_one(ops, "SELECT state, action_name FROM ops.elements_v1")
    assert tuple(row) == ("cancelled", "delete")


async def test_an_elements_start_and_finish(writer: BatchWriter, ops: asyncpg.Connection) -> None:
    query = "SELECT state, started, finished, duration, attempts FROM ops.elements_v1"
    start = step("ActionStart", 0, name="object.start", count=2)
    await writer.store(batch(log([start, step("PullImage", -10)])))
    assert tuple(await fetch_one(ops, query)) == ("running", at(0), None, None, 2)

    failed = step("ActionFailed", 1.5)
    await writer.store(batch(log([failed], begin=2)))
    assert tuple(await fetch_one(ops, query)) == (
        "failed", at(0), at(1.5), timedelta(seconds=1.5), 2,
    )  # fmt: skip

    again = step("ActionStart", 2, name="object.start")
    other = step("ActionStart", 3, name="object.other", count=4)
    await writer.store(batch(log([again, other, step("ActionRetry", 4, count=8)], begin=3)))
    assert tuple(await fetch_one(ops, query)) == ("running", at(0), None, None, 7)

    await writer.store(batch(log([step("SuccessfulFinish", 90)], begin=6)))
    assert tuple(await fetch_one(ops, query)) == (
        "succeeded", at(0), at(90), timedelta(seconds=90), 7,
    )  # fmt: skip


async def test_an_element_without_a_known_start(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    await writer.store(batch(log([step("ActionTimeout", 7)])))
    row = await fetch_one(ops, "SELECT started, finished, duration, attempts FROM ops.elements_v1")
    assert tuple(row) == (None, at(7), None, 0)


@pytest.mark.tampers
async def test_attempts_stop_at_their_maximum(
    database: Database, writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    await writer.store(batch(log([step("ActionStart", 0), step("ActionStart", 1)])))
    async with administrator(database.owner) as owner:
        await owner.execute("UPDATE execution_events.event SET count = $1", COUNT_MAX)
    assert await ops.fetchval("SELECT attempts FROM ops.elements_v1") == COUNT_MAX


async def test_an_element_belongs_to_an_execution_namespace_object_and_type(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    keys = ("execution_id", "namespace", "object_name", "elem_type", "elem_id")
    different = [occurrence(name=f"object.{key}", **{key: "other"}) for key in keys]
    await writer.store(batch(log([occurrence(), *different, step("ActionFailed", 1)])))
    rows = await ops.fetch(f"SELECT {', '.join(keys)}, state FROM ops.elements_v1")
    assert {tuple(row) for row in rows} == {
        (*(getattr(element, key) for key in keys), "running") for element in different
    } | {("execution-1", "tenant", "object", "KubeDAG.init", "job", "failed")}


async def test_the_pipeline_shows_the_progress_of_each_partition(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    query = 'SELECT topic, partition, "offset" FROM ops.pipeline_v1 ORDER BY partition'
    before = await ops.fetchval("SELECT max(last_write) FROM ops.pipeline_v1")
    await writer.store(batch(log([occurrence()] * 3, partition=1)))
    await writer.store(Batch([], {2: OffsetMove(0, 7)}))
    assert [tuple(row) for row in await ops.fetch(query)] == [
        (TOPIC, 0, 0),
        (TOPIC, 1, 3),
        (TOPIC, 2, 7),
    ]
    rows = await ops.fetch(
        "SELECT last_write, now() - last_write = age AS is_age FROM ops.pipeline_v1"
        " ORDER BY partition"
    )
    assert all(row["is_age"] for row in rows)
    assert rows[0]["last_write"] <= before < rows[1]["last_write"] < rows[2]["last_write"]


async def test_a_dead_letter_has_the_whole_record(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    records = [
        LogRecord(2, 0, 1_700_000_000_123, b"\xff\0", b"not json"),
        LogRecord(2, 1, 0, None, None),
    ]
    await writer.store(batch(records))
    rows = await ops.fetch(
        'SELECT topic, partition, "offset", reason, key_bytes, value_bytes, key, value,'
        " record_timestamp, refused_at <= now() AS is_past, detail <> '' AS is_explained"
        " FROM ops.dead_letters_v1 ORDER BY id"
    )
    moment = datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)
    unix_epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert [tuple(row) for row in rows] == [
        (TOPIC, 2, 0, wire.NOT_JSON, 2, 8, b"\xff\0", b"not json", moment, True, True),
        (TOPIC, 2, 1, wire.NO_VALUE, None, None, None, None, unix_epoch, True, True),
    ]


async def test_an_invalid_record_timestamp_is_null(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    """Even one that clients cannot represent: reading the view must not fail."""
    timestamps = [-1, -(2**63), 2**63 - 1, 253_402_300_800_000, 253_402_300_799_000]
    records = [LogRecord(0, offset, time, None, b"") for offset, time in enumerate(timestamps)]
    await writer.store(
        Batch([read(record) for record in records], {0: OffsetMove(0, len(records))})
    )
    rows = await ops.fetch("SELECT record_timestamp FROM ops.dead_letters_v1 ORDER BY id")
    assert [row[0] for row in rows] == [
        *[None] * 4,
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ]
