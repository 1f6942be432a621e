"""Dead letters are stored within limits, and retried exactly once."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import asyncpg
import pytest

from execution_events import wire
from execution_events.errors import RetryableError
from execution_events.store.connection import fetch_one
from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.dead_letters import (
    RECORD_MAX_BYTES,
    TRUNCATED_BYTES,
    DeadLetters,
    Filter,
    Outcome,
    Result,
    State,
    truncate,
)
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database, administrator
from tests.support.processes import COMMAND, environment, run_cli
from tests.support.records import DATABASE, EPOCH, LogRecord, batch, log, occurrence, refused

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


class Waiters:
    """Sessions that wait for a lock."""

    def __init__(self, administrator: asyncpg.Connection) -> None:
        self._administrator = administrator

    async def until(self, count: int) -> None:
        async def waiting() -> bool:
            pids = await self._administrator.fetch(f"SELECT pid {_WAITING}")
            return len(pids) == count

        await until(waiting, f"{count} sessions wait for a lock")

    async def kill(self) -> None:
        await self._administrator.execute(f"SELECT pg_terminate_backend(pid) {_WAITING}")


_WAITING = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@asynccontextmanager
async def locked_executions(database: Database) -> AsyncIterator[Waiters]:
    """Lock all executions, so that a retry waits before it stores the record."""
    async with (
        administrator(database.administrator) as watcher,
        administrator(database.owner) as holder,
        holder.transaction(),
    ):
        await holder.execute("SELECT FROM execution_events.execution FOR UPDATE")
        yield Waiters(watcher)


@asynccontextmanager
async def locked_mark(database: Database) -> AsyncIterator[Waiters]:
    """Delay the update of dead letters, so that a retry waits after it has stored the record."""
    async with (
        administrator(database.administrator) as watcher,
        administrator(database.administrator) as holder,
    ):
        await holder.execute(
            "CREATE FUNCTION execution_events.wait() RETURNS trigger"
            " LANGUAGE plpgsql SECURITY DEFINER AS"
            " 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN new; END';"
            " CREATE TRIGGER wait BEFORE UPDATE ON execution_events.dead_letter"
            " FOR EACH ROW EXECUTE FUNCTION execution_events.wait()"
        )
        async with holder.transaction():
            await holder.execute("SELECT pg_advisory_xact_lock(1)")
            yield Waiters(watcher)


# Truncation.


def sized(key: int, value: int, header: int) -> LogRecord:
    """Return a record of these sizes; its header's name is one character of two bytes."""
    return LogRecord(0, 0, 0, b"k" * key, b"v" * value, [("é", b"h" * (header - 2))])


@pytest.mark.parametrize(
    ("key", "value", "header"),
    [
        (0, RECORD_MAX_BYTES - 2, 2),
        (RECORD_MAX_BYTES - 102, 100, 2),
        (2, 100, RECORD_MAX_BYTES - 102),
    ],
)
def test_a_record_over_a_mebibyte_is_truncated(key: int, value: int, header: int) -> None:
    record = sized(key, value, header)
    assert truncate(record) == (record.key, record.value, record.headers, None)

    for larger in (
        sized(key + 1, value, header),
        sized(key, value + 1, header),
        sized(key, value, header + 1),
    ):
        kept = truncate(larger)
        assert kept.key == (larger.key or b"")[:TRUNCATED_BYTES]
        assert kept.value == (larger.value or b"")[:TRUNCATED_BYTES]
        assert kept.truncation == (
            len(larger.key or b""),
            len(larger.value or b""),
            1,
            sha256(larger.value or b"").digest(),
        )


def test_headers_are_stored_whole_while_they_fit() -> None:
    value = b"v" * RECORD_MAX_BYTES
    fits: wire.Headers = [("a", b"1" * (TRUNCATED_BYTES - 2)), ("b", None)]
    for more in [("", b"2"), ("c", None)]:
        kept = truncate(LogRecord(0, 0, 0, None, value, [*fits, more, ("", b"")]))
        assert kept.key is None
        assert kept.headers == fits
        assert kept.truncation is not None
        assert kept.truncation.key_bytes is None
        assert kept.truncation.headers == 4


def test_a_record_without_a_value_is_truncated() -> None:
    kept = truncate(LogRecord(0, 0, 0, b"k" * (RECORD_MAX_BYTES + 1), None))
    assert kept.truncation == (RECORD_MAX_BYTES + 1, None, 0, None)
    assert (len(kept.key or b""), kept.value) == (TRUNCATED_BYTES, None)


async def test_a_truncated_record_has_its_length_and_hash_and_cannot_be_retried(
    database: Database, writer: BatchWriter, letters: DeadLetters, run: Run
) -> None:
    key, value = wire.encode(occurrence())
    large = value[:-1] + b" " * 2_000_000 + b"}"
    await writer.store(refused([LogRecord(0, 0, 0, key, large, [("a", b"1" * TRUNCATED_BYTES)])]))

    [letter] = [letter async for letter in letters.list(Filter())]
    assert (letter.truncated, letter.value_bytes) == (True, len(large))
    assert await letters.retry(letter.id) == Outcome(Result.TRUNCATED)
    content = await letters.content(letter.id)
    digest = sha256(large).digest()
    assert content == (key, len(key), large[:TRUNCATED_BYTES], digest, 1, [])
    async with administrator(database.ops) as ops:
        row = await fetch_one(
            ops,
            "SELECT key_bytes, value_bytes, value, truncated, value_sha256, attempts, state"
            " FROM ops.dead_letters_v1",
        )
    assert tuple(row) == (len(key), len(large), large[:TRUNCATED_BYTES], True, digest, 0, "open")

    assert "[truncated]" in await run("list")
    output = await run("retry", "--all", code=1)
    assert "cannot be retried" in output
    assert output.endswith("retried: 0, truncated: 1\n")
    shown = await run("show", str(letter.id))
    assert f"value      {len(large)} bytes, the first {TRUNCATED_BYTES} kept" in shown
    assert digest.hex() in shown


# Retry.


async def test_a_retry_stores_a_record_once_the_database_accepts_it(
    writer: BatchWriter, owner: asyncpg.Connection, letters: DeadLetters
) -> None:
    await owner.execute("ALTER TABLE event ADD CONSTRAINT no_bombs CHECK (reason <> 'bomb')")
    bomb = occurrence(name="object.2", reason="bomb", count=40)
    await writer.store(batch(log([occurrence()])))
    await writer.store(refused(log([bomb], begin=1)))
    [letter] = await ids(letters)
    before = await owner.fetch("SELECT * FROM execution")

    for attempt in (1, 2):
        assert await letters.retry(letter) == Outcome(Result.REFUSED, DATABASE)
        assert await owner.fetch("SELECT * FROM execution") == before
        [listed] = [letter async for letter in letters.list(Filter(state=State.OPEN))]
        assert (listed.attempts, listed.last_reason, listed.last_detail) == (attempt, *DATABASE)
        assert listed.last_attempt_at is not None

    await owner.execute("ALTER TABLE event DROP CONSTRAINT no_bombs")
    assert await letters.retry(letter) == DONE
    assert await letters.retry(letter) == CLOSED
    assert await letters.discard(letter) == CLOSED
    [listed] = [letter async for letter in letters.list(Filter())]
    assert (listed.state, listed.attempts, listed.discarded_at) == ("retried", 3, None)
    assert listed.retried_at == listed.last_attempt_at
    events = await owner.fetch("SELECT name, count FROM event ORDER BY name")
    assert [tuple(row) for row in events] == [("object.1", 1), ("object.2", 40)]
    execution = await fetch_one(owner, "SELECT events, occurrences, revision FROM execution")
    assert tuple(execution)[:2] == (2, 41)
    assert execution["revision"] > before[0]["revision"]


@pytest.mark.parametrize(
    ("key", "value", "headers", "reason"),
    [
        (None, b"not json", (), wire.NOT_JSON),
        (None, None, (), wire.NO_VALUE),
        (b"other", wire.encode(occurrence())[1], (), wire.WRONG_KEY),
        (None, wire.encode(occurrence())[1], (("ce_source", b"s"),), wire.INVALID_HEADERS),
    ],
)
async def test_a_retry_decodes_the_whole_record_again(
    writer: BatchWriter,
    owner: asyncpg.Connection,
    letters: DeadLetters,
    key: bytes | None,
    value: bytes | None,
    headers: wire.Headers,
    reason: str,
) -> None:
    await writer.store(batch([LogRecord(0, 0, 0, key, value, headers)]))
    [first] = [letter async for letter in letters.list(Filter())]
    for attempt in (1, 2):
        assert (await letters.retry(first.id)).refusal == (reason, first.detail)
        [again] = [letter async for letter in letters.list(Filter(state=State.OPEN))]
        assert (again.attempts, again.reason, again.last_reason) == (attempt, reason, reason)
    assert await owner.fetchval("SELECT count(*) FROM event") == 0


async def test_a_retry_uses_the_records_timestamp_as_default(
    writer: BatchWriter, owner: asyncpg.Connection, letters: DeadLetters
) -> None:
    body = json.loads(wire.encode(occurrence())[1])
    del body["firstTimestamp"], body["lastTimestamp"]
    record = LogRecord(0, 0, 1_700_000_000_123, None, json.dumps(body).encode())
    await writer.store(refused([record]))
    assert await letters.retry((await ids(letters))[0]) == DONE
    stored = await owner.fetchval("SELECT last_timestamp FROM event")
    assert stored.timestamp() == 1_700_000_000.123


async def test_a_retry_stores_the_last_microsecond_of_the_contract(
    writer: BatchWriter, owner: asyncpg.Connection, letters: DeadLetters
) -> None:
    """asyncpg's own codec makes it infinity."""
    last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    await writer.store(refused(log([occurrence(last_timestamp=last)])))
    assert await letters.retry((await ids(letters))[0]) == DONE
    assert await owner.fetchval("SELECT isfinite(last_timestamp) FROM event")


async def test_a_retried_record_is_the_last_of_its_partition(
    writer: BatchWriter, owner: asyncpg.Connection, letters: DeadLetters
) -> None:
    """It wins ties that it would have lost at its offset, and the list position stays."""
    early, late = EPOCH - timedelta(hours=1), EPOCH + timedelta(hours=1)
    await writer.store(
        refused(
            log(
                [
                    occurrence(name="tied", message="retried", first_timestamp=early),
                    occurrence(name="earlier", message="retried", last_timestamp=EPOCH),
                ]
            )
        )
    )
    after = [
        occurrence(name="tied", message="applied"),
        occurrence(name="earlier", message="applied", last_timestamp=late),
    ]
    await writer.store(batch(log(after, begin=2)))
    for letter in await ids(letters):
        assert await letters.retry(letter) == DONE
    rows = await owner.fetch(
        "SELECT name, body_text(body, 'message'), list_position, first_timestamp, last_timestamp,"
        " count FROM event ORDER BY name"
    )
    assert [tuple(row) for row in rows] == [
        ("earlier", "applied", EPOCH, EPOCH, late, 2),
        ("tied", "retried", EPOCH, early, EPOCH, 2),
    ]


async def test_a_retry_moves_no_watermark_and_no_offset(
    writer: BatchWriter, owner: asyncpg.Connection, letters: DeadLetters
) -> None:
    records = log([occurrence(), occurrence()], source="worker")
    await writer.store(refused(records[:1]))
    await writer.store(batch(records[1:]))
    tables = ("producer_progress", "partition_progress")
    # xmin changes even if a row is rewritten unchanged.
    before = [await owner.fetch(f"SELECT xmin, * FROM {table}") for table in tables]

    assert await letters.retry((await ids(letters))[0]) == DONE

    assert [await owner.fetch(f"SELECT xmin, * FROM {table}") for table in tables] == before
    assert await owner.fetchval("SELECT count FROM event") == 2
    copies = [record._replace(offset=record.offset + 2) for record in records]
    assert (await writer.store(batch(copies))).duplicates == 2


async def test_concurrent_retries_count_once(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection, letters: DeadLetters
) -> None:
    await writer.store(batch(log([occurrence()])))
    await writer.store(refused(log([occurrence(count=40)], begin=1)))
    [letter] = await ids(letters)
    async with DeadLetters.open(database.writer) as others:
        async with locked_executions(database) as waiters:
            both = [asyncio.create_task(each.retry(letter)) for each in (letters, others)]
            await waiters.until(2)
        assert sorted([await task for task in both]) == [CLOSED, DONE]
    assert await owner.fetchval("SELECT count FROM event") == 41
    assert await owner.fetchval("SELECT attempts FROM dead_letter") == 1


async def test_a_discard_during_a_retry_finds_it_done(
    database: Database, writer: BatchWriter, letters: DeadLetters
) -> None:
    await writer.store(batch(log([occurrence()])))
    await writer.store(refused(log([occurrence()], begin=1)))
    [letter] = await ids(letters)
    async with DeadLetters.open(database.writer) as others:
        async with locked_executions(database) as waiters:
            retry = asyncio.create_task(letters.retry(letter))
            await waiters.until(1)
            discard = asyncio.create_task(others.discard(letter))
            await waiters.until(2)
        assert (await retry, await discard) == (DONE, CLOSED)


@pytest.mark.parametrize("locked", [locked_executions, locked_mark])
async def test_a_killed_retry_changes_nothing(
    database: Database,
    writer: BatchWriter,
    owner: asyncpg.Connection,
    letters: DeadLetters,
    locked: Callable[[Database], AbstractAsyncContextManager[Waiters]],
) -> None:
    """Before it stores the record, and between that and the update of the letter."""
    await writer.store(batch(log([occurrence()])))
    await writer.store(refused(log([occurrence(count=40)], begin=1)))
    [letter] = await ids(letters)
    tables = ("event", "execution", "dead_letter")
    before = [await owner.fetch(f"SELECT * FROM {table}") for table in tables]
    async with DeadLetters.open(database.writer) as killed, locked(database) as waiters:
        retry = asyncio.create_task(killed.retry(letter))
        await waiters.until(1)
        await waiters.kill()
        with pytest.raises(RetryableError):
            await retry
    assert [await owner.fetch(f"SELECT * FROM {table}") for table in tables] == before

    assert await letters.retry(letter) == DONE
    assert await owner.fetchval("SELECT count FROM event") == 41


async def test_a_command_keeps_its_retries_when_its_connection_is_lost(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection, run: Run
) -> None:
    free = occurrence(execution_id="execution-0", count=2)
    held = occurrence(execution_id="execution-1", count=40)
    await writer.store(batch(log([occurrence()])))
    await writer.store(refused(log([free, held], begin=1)))
    async with locked_executions(database) as waiters:
        command = asyncio.create_task(run("retry", "--reason", DATABASE.reason, code=1))
        await waiters.until(1)
        await waiters.kill()
        assert await command == "retried: 1\n"

    assert await run("retry", "--reason", DATABASE.reason) == "retried: 1\n"
    counts = await owner.fetch("SELECT count FROM event ORDER BY execution_id")
    assert [row["count"] for row in counts] == [2, 41]


async def test_ctrl_c_stops_after_the_current_letter(
    database: Database, writer: BatchWriter, letters: DeadLetters
) -> None:
    await writer.store(batch(log([occurrence()])))
    await writer.store(refused(log([occurrence()] * 3, begin=1)))
    async with locked_executions(database) as waiters:
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "dead-letters", "retry", "--all"),
            env=environment(configured(database_url=database.writer)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await waiters.until(1)
        process.send_signal(signal.SIGINT)
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate()
    assert (process.returncode, out.decode()) == (1, "retried: 1\n")
    assert err.decode() == "execution-events: interrupted with 2 dead letters left\n"
    assert len(await ids(letters, state=State.OPEN)) == 2


async def test_concurrent_retries_and_a_consumer_count_every_occurrence(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection, letters: DeadLetters
) -> None:
    """The same executions in opposite order do not deadlock."""
    executions = [occurrence(execution_id=f"execution-{n}") for n in range(20)]
    await writer.store(refused(log(executions)))
    numbers = await ids(letters)

    async def consume() -> None:
        for begin in range(20, 420, 20):
            await writer.store(batch(log(executions, begin=begin)))

    async def retry() -> list[Outcome]:
        return [await letters.retry(letter) for letter in reversed(numbers)]

    _, outcomes = await asyncio.gather(consume(), retry())
    assert outcomes == [DONE] * 20
    counts = await owner.fetch("SELECT count FROM event")
    assert [row["count"] for row in counts] == [21] * 20
