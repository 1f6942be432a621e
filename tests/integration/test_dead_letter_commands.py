"""The dead-letters commands: lists, filters, retries and discards."""

import base64
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, timedelta
from hashlib import sha256
from typing import Any

import asyncpg
import pytest

from execution_events import wire
from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.dead_letters import (
    DeadLetters,
    Filter,
    Outcome,
    Result,
    State,
)
from tests.support.configuration import configured
from tests.support.databases import Database
from tests.support.processes import environment, run_cli
from tests.support.records import EPOCH, LogRecord, batch, log, occurrence, refused

TOPIC = "events"
DONE, CLOSED = Outcome(Result.DONE), Outcome(Result.CLOSED)

Run = Callable[..., Coroutine[Any, Any, str]]


@pytest.fixture
async def letters(database: Database) -> AsyncIterator[DeadLetters]:
    """Dead letters as the writer's role, the least privileged one for the commands."""
    async with DeadLetters.open(database.writer) as letters:
        yield letters


@pytest.fixture
async def run(database: Database) -> Run:
    env = environment(configured(database_url=database.writer))

    async def run(*arguments: str, code: int = 0) -> str:
        return await run_cli("dead-letters", *arguments, env=env, code=code)

    return run


async def ids(letters: DeadLetters, **conditions: Any) -> list[int]:
    return [letter.id async for letter in letters.list(Filter(**conditions))]


# Discard and filters.


async def test_a_discarded_letter_is_kept_and_stays_discarded(
    writer: BatchWriter, owner: asyncpg.Connection, letters: DeadLetters
) -> None:
    await writer.store(refused(log([occurrence()])))
    [letter] = await ids(letters)
    assert await letters.discard(letter) == DONE
    for closed in (await letters.discard(letter), await letters.retry(letter)):
        assert closed == CLOSED
    assert await ids(letters, state=State.OPEN) == []
    assert await ids(letters, state=State.DISCARDED) == [letter]
    assert await owner.fetchval("SELECT count(*) FROM event") == 0
    assert await letters.retry(letter + 1) == CLOSED


async def test_filters_are_joined_by_and(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection, letters: DeadLetters
) -> None:
    bad, good = b"not json", occurrence()
    await writer.store(batch(log([bad, bad], partition=0)))
    await writer.store(refused(log([good], partition=1)))
    async with BatchWriter(database.writer, "other") as other:
        await other.begin_partition(1, 0, "cluster")
        await other.store(batch([LogRecord(1, 0, 0, None, None)]))
    a, b, c, d = await ids(letters)
    for hour, letter in enumerate((a, b, c, d)):
        await owner.execute(
            "UPDATE dead_letter SET refused_at = $2 WHERE id = $1",
            letter,
            EPOCH + timedelta(hours=hour),
        )
    await letters.retry(a)
    await letters.retry(c)
    await letters.discard(d)
    # A later version of the program may refuse for another reason.
    await owner.execute("UPDATE dead_letter SET reason = 'no_value' WHERE id = $1", a)

    second, third = EPOCH + timedelta(hours=1), EPOCH + timedelta(hours=2)
    selections: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [a, b, c, d]),
        ({"ids": [d, b, 999]}, [b, d]),
        ({"state": State.OPEN}, [a, b]),
        ({"state": State.RETRIED}, [c]),
        ({"state": State.DISCARDED}, [d]),
        ({"reason": wire.NOT_JSON}, [a, b]),
        ({"reason": wire.NO_VALUE}, [a, d]),
        ({"reason": wire.REFUSED_BY_DATABASE}, [c]),
        ({"topic": TOPIC}, [a, b, c]),
        ({"partition": 0}, [a, b]),
        ({"partition": 1, "topic": "other"}, [d]),
        ({"since": second}, [b, c, d]),
        ({"until": second}, [a]),
        ({"since": second, "until": third}, [b]),
        ({"ids": [a, b], "partition": 1}, []),
    ]
    for conditions, expected in selections:
        assert await ids(letters, **conditions) == expected, conditions
        count = await letters.count(Filter(**conditions))
        assert count == (len(expected), max(expected, default=0)), conditions


async def test_a_list_of_several_pages_is_complete(
    writer: BatchWriter, letters: DeadLetters
) -> None:
    await writer.store(batch(log([b"not json"] * 250)))
    listed = await ids(letters)
    assert listed == sorted(set(listed))
    assert len(listed) == 250


# The commands.


async def test_a_list_as_json(writer: BatchWriter, run: Run) -> None:
    value = b"\xff" + b"x" * 300
    await writer.store(batch([LogRecord(2, 0, -1, b"k\x00" * 200, value)]))
    [line] = (await run("list", "--json")).splitlines()
    listed = json.loads(line)
    refused_at, number = listed.pop("refusedAt"), listed.pop("id")
    assert refused_at.endswith("Z")
    assert number > 0
    assert list(listed.items()) == [
        ("topic", TOPIC),
        ("partition", 2),
        ("offset", 0),
        ("timestamp", -1),
        ("key", "k\0" * 128),
        ("valueBytes", 301),
        ("valueBegin", "\\xff" + "x" * 255),
        ("reason", "not_utf8"),
        ("detail", "the value is not UTF-8 at byte 0"),
        ("state", "open"),
        ("attempts", 0),
        ("lastAttemptAt", None),
        ("lastReason", None),
        ("lastDetail", None),
        ("retriedAt", None),
        ("discardedAt", None),
        ("truncated", False),
    ]


async def test_bytes_that_are_not_text_are_shown_escaped_and_as_base64(
    writer: BatchWriter, letters: DeadLetters, run: Run
) -> None:
    value = "消息 ok\n\x1b[31m\u202e\x00".encode() + b"\xfe\xff"
    record = LogRecord(
        1, 0, 1_700_000_000_123, b"\xff\0key", value, (("n\x07", b"\x80"), ("", None))
    )
    await writer.store(batch([record]))
    [letter] = await ids(letters)
    await letters.retry(letter)

    shown = (await run("show", str(letter))).splitlines()
    assert shown[0] == f"dead letter {letter}: open"
    assert shown[1] == (
        f"record     {TOPIC}/1@0, timestamp 1700000000123 (2023-11-14T22:13:20.123Z)"
    )
    assert shown[2].endswith(", not_utf8: the value is not UTF-8 at byte 19")
    assert shown[3].startswith("attempts   1, last ")
    assert shown[4:] == [
        "           refused again, not_utf8: the value is not UTF-8 at byte 19",
        "key        5 bytes",
        "           \\xff\\x00key",
        "headers    2",
        "           n\\x07: \\x80",
        "           : none",
        f"value      {len(value)} bytes",
        f"SHA-256    {sha256(value).hexdigest()}",
        "消息 ok",
        "\\x1b[31m\\u202e\\x00\\xfe\\xff",
    ]

    whole = json.loads(await run("show", str(letter), "--json"))
    assert base64.b64decode(whole["valueBase64"]) == value
    assert base64.b64decode(whole["keyBase64"]) == record.key
    assert whole["value"] == "消息 ok\n\x1b[31m\u202e\x00\\xfe\\xff"
    assert whole["headers"] == [
        {"name": "n\x07", "value": "\\x80", "valueBase64": "gA=="},
        {"name": "", "value": None, "valueBase64": None},
    ]
    assert (whole["attempts"], whole["lastReason"]) == (1, "not_utf8")


async def test_raw_prints_the_value_only(
    writer: BatchWriter, letters: DeadLetters, run: Run
) -> None:
    await writer.store(batch(log([b'{"a":\n"\xe6\xb6\x88"}\n'])))
    await writer.store(batch([LogRecord(0, 1, 0, None, None)]))
    with_value, without = await ids(letters)
    assert await run("show", "--raw", str(with_value)) == '{"a":\n"消"}\n'
    assert await run("show", "--raw", str(without), code=1) == ""
    assert "value      none" in await run("show", str(without))
    assert await run("show", str(without + 1), code=1) == ""


async def test_retry_and_discard_print_their_results(
    writer: BatchWriter, owner: asyncpg.Connection, letters: DeadLetters, run: Run
) -> None:
    await writer.store(refused(log([occurrence(), occurrence(), occurrence()])))
    await writer.store(batch(log([b"not json"] * 12, begin=3)))
    first, second, third, fourth, *_ = await ids(letters)

    assert await run("retry", str(first)) == "retried: 1\n"
    assert await run("retry", str(first), str(second), "999", code=1) == (
        f"dead letter {first}: is already retried\n"
        "dead letter 999: does not exist\n"
        "retried: 1\n"
    )  # fmt: skip
    assert await run("discard", str(third)) == "discarded: 1\n"
    lines = (await run("retry", "--all", code=1)).splitlines()
    assert lines[0] == f"dead letter {fourth}: was refused again: not_json: " + (
        "JSON is malformed: invalid character (byte 4)"
    )
    assert len(lines) == 12
    assert lines[10:] == ["and 2 more", "retried: 0, refused again: 12"]
    assert await run("discard", "--reason", "not_json", "--partition", "0") == "discarded: 12\n"
    assert await run("list") == "no dead letters\n"
    assert len((await run("list", "--state", "all")).splitlines()) == 15
    [line] = (await run("list", "--state", "discarded", str(third))).splitlines()
    assert line.endswith("[discarded]")
    assert await owner.fetchval("SELECT count FROM event") == 2


async def test_a_time_with_an_offset_is_accepted(writer: BatchWriter, run: Run, owner: Any) -> None:
    await writer.store(batch(log([b"not json"])))
    await owner.execute("UPDATE dead_letter SET refused_at = $1", EPOCH.astimezone(UTC))
    assert "not_json" in await run("list", "--since", "2026-01-01T08:00:00+08:00")
    assert await run("list", "--until", "2026-01-01T00:00:00Z") == "no dead letters\n"
