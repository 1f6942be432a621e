"""The public views: their columns and meanings are a contract."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from execution_events import wire
from execution_events.events import Occurrence
from execution_events.projection.batch import read
from execution_events.store.connection import fetch_one
from execution_events.store.write.batches import Batch, BatchWriter
from execution_events.store.write.dead_letters import DeadLetters, Result
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
    "actions_v1": [
        "execution_id text",
        "namespace text",
        "object_name text",
        "elem_type text",
        "elem_id text",
        "action_name text",
        "state text",
        "started timestamp with time zone",
        "finished timestamp with time zone",
        "duration interval",
        "duration_seconds double precision",
        "attempts bigint",
        "retries bigint",
        "warnings bigint",
        "last_seen timestamp with time zone",
        "last_reason_code text",
        "last_message_en text",
        "failure text",
        "fingerprint text",
        "retried boolean",
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
        "duration_seconds double precision",
        "actions bigint",
        "attempts bigint",
        "retries bigint",
        "warnings bigint",
        "last_seen timestamp with time zone",
    ],
    "executions_v1": [
        "execution_id text",
        "namespace text",
        "object_name text",
        "state text",
        "elements bigint",
        "running bigint",
        "succeeded bigint",
        "failed bigint",
        "timed_out bigint",
        "cancelled bigint",
        "warnings bigint",
        "events bigint",
        "occurrences bigint",
        "first_timestamp timestamp with time zone",
        "last_timestamp timestamp with time zone",
        "duration_seconds double precision",
        "created_at timestamp with time zone",
        "changed_at timestamp with time zone",
        "revision bigint",
        "first_failure_elem_id text",
        "first_failure_action_name text",
        "first_failure_reason_code text",
        "first_failure_message_en text",
    ],
    "failures_v1": [
        "execution_id text",
        "namespace text",
        "object_name text",
        "elem_type text",
        "elem_id text",
        "action_name text",
        "state text",
        "finished timestamp with time zone",
        "attempts bigint",
        "reason_code text",
        "failure text",
        "fingerprint text",
    ],
    "quiet_v1": [
        "execution_id text",
        "namespace text",
        "object_name text",
        "elem_type text",
        "elem_id text",
        "action_name text",
        "started timestamp with time zone",
        "last_seen timestamp with time zone",
        "silence_seconds double precision",
        "usual_seconds double precision",
        "last_reason_code text",
    ],
    "durations_v1": [
        "namespace text",
        "elem_type text",
        "action_name text",
        "ended bigint",
        "failed bigint",
        "p50_seconds double precision",
        "p95_seconds double precision",
        "max_seconds double precision",
    ],
    "event_rate_v1": [
        "minute timestamp with time zone",
        "partition integer",
        "records bigint",
        "occurrences bigint",
        "dead_letters bigint",
    ],
    "pipeline_v1": [
        "topic text",
        "partition integer",
        "next_offset bigint",
        "log_end_offset bigint",
        "lag bigint",
        "observed_at timestamp with time zone",
        "last_write timestamp with time zone",
        "consumer text",
        "halted text",
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


@pytest.mark.parametrize("view", COLUMNS)
async def test_postgresql_inlines_the_functions_of_a_view(
    ops: asyncpg.Connection, view: str
) -> None:
    plan = await ops.fetch(f"EXPLAIN (VERBOSE, COSTS OFF) SELECT * FROM ops.{view}")
    text = "\n".join(row[0] for row in plan)
    assert re.search("first_half|second_half|body_text", text) is None, text


async def test_a_view_without_the_last_event_does_not_read_events(ops: asyncpg.Connection) -> None:
    plan = await ops.fetch("EXPLAIN SELECT execution_id, state, retries FROM ops.actions_v1")
    assert not any("event" in row[0] for row in plan), plan


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


async def test_a_closed_dead_letter_is_not_shown(
    writer: BatchWriter, database: Database, ops: asyncpg.Connection
) -> None:
    records = [LogRecord(0, offset, 0, None, b"not json") for offset in range(3)]
    await writer.store(batch(records))
    first, second, third = [row[0] for row in await ops.fetch("SELECT id FROM ops.dead_letters_v1")]
    async with DeadLetters.open(database.writer) as letters:
        assert (await letters.discard(second)).result == Result.DONE
    rows = await ops.fetch("SELECT id, state FROM ops.dead_letters_v1 ORDER BY id")
    assert [tuple(row) for row in rows] == [(first, "open"), (third, "open")]
