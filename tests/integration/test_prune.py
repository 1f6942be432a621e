"""Pruning deletes old executions whole, and keeps those that change meanwhile whole."""

import asyncio
import os
import pty
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from execution_events.store.connection import fetch_one
from execution_events.store.write import prune
from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.dead_letters import DeadLetters, Filter
from execution_events.store.write.prune import (
    SOURCE_RETENTION,
    PruneProgress,
    prune_dead_letters,
    prune_executions,
    prune_sources,
    time_before,
)
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database, administrator
from tests.support.processes import COMMAND, environment, run_cli
from tests.support.records import batch, log, occurrence

DAY = timedelta(days=1)


@pytest.fixture
async def cutoff(owner: asyncpg.Connection) -> datetime:
    return await time_before(owner, 90 * DAY)


async def store(writer: BatchWriter, executions: Iterable[str], begin: int = 0) -> None:
    """Store an event with 2 occurrences in each execution."""
    await writer.store(
        batch(log([occurrence(execution_id=name, count=2) for name in executions], begin=begin))
    )


async def age(owner: asyncpg.Connection, days: float, *executions: str) -> None:
    """Set the last change of `executions` to `days` ago."""
    await owner.execute(
        "UPDATE execution SET changed_at = now() - $1::interval WHERE execution_id = ANY ($2)",
        days * DAY,
        executions,
    )


async def total(transactions: AsyncIterator[PruneProgress]) -> PruneProgress:
    sums = PruneProgress(0, 0, 0)
    async for progress in transactions:
        sums = PruneProgress(*map(sum, zip(sums, progress, strict=True)))
    return sums


async def kept(owner: asyncpg.Connection) -> dict[str, tuple[int, int]]:
    """Return each execution's events and occurrences, after comparing them with its events."""
    executions = await owner.fetch(
        "SELECT execution_id, namespace, events, occurrences FROM execution ORDER BY 1, 2"
    )
    of_events = await owner.fetch(
        "SELECT execution_id, namespace, count(*), sum(count) FROM event"
        " GROUP BY 1, 2 ORDER BY 1, 2"
    )
    assert [tuple(row) for row in executions] == [tuple(row) for row in of_events]
    return {row["execution_id"]: (row["events"], row["occurrences"]) for row in executions}


@asynccontextmanager
async def locked_event(database: Database, execution: str) -> AsyncIterator["Waiters"]:
    """Lock an execution's event: a prune then waits after locking the execution."""
    async with (
        administrator(database.administrator) as watcher,
        administrator(database.owner) as holder,
        holder.transaction(),
    ):
        await holder.execute(
            "SELECT FROM execution_events.event WHERE execution_id = $1 FOR UPDATE", execution
        )
        yield Waiters(watcher)


class Waiters:
    """Sessions that wait for a lock."""

    def __init__(self, watcher: asyncpg.Connection) -> None:
        self._watcher = watcher

    async def until(self, count: int) -> None:
        async def reached() -> bool:
            waiting: int = await self._watcher.fetchval(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            return waiting == count

        await until(reached, f"{count} sessions wait for a lock")


# Executions.


async def test_exactly_the_old_executions_are_deleted(
    writer: BatchWriter, owner: asyncpg.Connection, cutoff: datetime
) -> None:
    names = [f"execution-{number:04}" for number in range(2500)]
    await store(writer, names)
    old = names[::2]
    await age(owner, 91, *old)
    await age(owner, 89, names[1])

    dry = await total(prune_executions(owner, cutoff, dry_run=True))
    assert dry == (2500, 1250, 1250)
    assert len(await kept(owner)) == 2500

    assert await total(prune_executions(owner, cutoff, dry_run=False)) == dry
    assert await kept(owner) == dict.fromkeys(names[1::2], (1, 2))
    assert await total(prune_executions(owner, cutoff, dry_run=False)) == (1250, 0, 0)


async def test_the_time_of_the_last_change_decides_not_that_of_the_events(
    writer: BatchWriter, owner: asyncpg.Connection, cutoff: datetime
) -> None:
    past = datetime(1970, 1, 1, tzinfo=UTC)
    await writer.store(batch(log([occurrence(first_timestamp=past, last_timestamp=past)])))
    assert await total(prune_executions(owner, cutoff, dry_run=False)) == (1, 0, 0)


async def test_each_namespace_of_an_execution_is_pruned_on_its_own(
    writer: BatchWriter, owner: asyncpg.Connection, cutoff: datetime
) -> None:
    await writer.store(batch(log([occurrence(), occurrence(namespace="zone", count=2)])))
    await age(owner, 91, "execution-1")
    await owner.execute("UPDATE execution SET changed_at = now() WHERE namespace = 'zone'")
    assert await total(prune_executions(owner, cutoff, dry_run=False)) == (2, 1, 1)
    assert await kept(owner) == {"execution-1": (1, 2)}


async def test_a_page_ends_at_any_namespace_of_an_execution(
    writer: BatchWriter,
    owner: asyncpg.Connection,
    cutoff: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prune, "_PAGE", 3)
    keys = [("a", "k"), ("a", "z"), ("b", "m"), ("b", "n")]
    await writer.store(
        batch(log([occurrence(execution_id=name, namespace=namespace) for name, namespace in keys]))
    )
    await age(owner, 91, "a", "b")
    assert await total(prune_executions(owner, cutoff, dry_run=False)) == (4, 4, 4)
    assert await kept(owner) == {}


async def test_an_execution_that_is_being_written_is_kept_whole(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection, cutoff: datetime
) -> None:
    await store(writer, ["a", "b", "c"])
    await age(owner, 91, "a", "b", "c")
    # The writer has locked b and waits for c.
    async with administrator(database.owner) as holder, holder.transaction():
        await holder.execute(
            "SELECT FROM execution_events.execution WHERE execution_id = 'c' FOR UPDATE"
        )
        storing = asyncio.create_task(store(writer, ["b", "c"], begin=3))
        async with administrator(database.administrator) as watcher:
            await Waiters(watcher).until(1)
        assert await total(prune_executions(owner, cutoff, dry_run=False)) == (3, 1, 1)
    await storing
    assert await kept(owner) == {"b": (1, 4), "c": (1, 4)}


async def test_an_execution_written_after_the_scan_is_kept(
    database: Database,
    writer: BatchWriter,
    owner: asyncpg.Connection,
    cutoff: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prune, "_BATCH_EVENTS", 1)
    await store(writer, ["a", "b", "c"])
    await age(owner, 91, "a", "b", "c")
    async with locked_event(database, "a") as waiters:
        pruning = asyncio.create_task(total(prune_executions(owner, cutoff, dry_run=False)))
        await waiters.until(1)
        await store(writer, ["b"], begin=3)
    assert await pruning == (3, 2, 2)
    assert await kept(owner) == {"b": (1, 4)}


async def test_an_execution_that_is_being_deleted_starts_again(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection, cutoff: datetime
) -> None:
    await store(writer, ["a"])
    await age(owner, 91, "a")
    before = await owner.fetchval("SELECT revision FROM execution")
    async with locked_event(database, "a") as waiters:
        pruning = asyncio.create_task(total(prune_executions(owner, cutoff, dry_run=False)))
        await waiters.until(1)
        storing = asyncio.create_task(store(writer, ["a"], begin=1))
        await waiters.until(2)
    await asyncio.gather(pruning, storing)
    assert await kept(owner) == {"a": (1, 2)}
    row = await fetch_one(owner, "SELECT revision, created_at = changed_at FROM execution")
    assert row[0] > before
    assert row[1]


async def test_a_concurrent_writer_and_a_prune_leave_whole_executions(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection, cutoff: datetime
) -> None:
    names = [f"execution-{number:03}" for number in range(400)]
    await store(writer, names)
    await age(owner, 91, *names)

    async def write() -> None:
        for number in range(20):
            await store(writer, names[number * 20 : number * 20 + 20], 400 + number * 20)

    _, (_, gone, events) = await asyncio.gather(
        write(), total(prune_executions(owner, cutoff, dry_run=False))
    )
    rows = await kept(owner)
    assert rows.keys() == set(names)
    # Deleted before its record was stored, or kept with it.
    assert sum(row == (1, 2) for row in rows.values()) == gone == events
    assert sum(row == (1, 4) for row in rows.values()) == 400 - gone


async def test_a_stopped_prune_leaves_whole_executions(
    writer: BatchWriter, owner: asyncpg.Connection, cutoff: datetime
) -> None:
    names = [f"execution-{number:03}" for number in range(300)]
    await store(writer, names)
    await age(owner, 91, *names)
    async for progress in prune_executions(owner, cutoff, dry_run=False):
        assert progress == (100, 100, 100)
        break
    assert await kept(owner) == dict.fromkeys(names[100:], (1, 2))


async def test_a_transaction_has_a_limit_of_events(
    writer: BatchWriter, owner: asyncpg.Connection, cutoff: datetime
) -> None:
    await store(writer, "abcde")
    await age(owner, 91, *"abcde")
    for name, events in zip("abcde", (9_999, 1, 1, 20_000, 1), strict=True):
        await owner.execute(
            "UPDATE execution SET events = $1 WHERE execution_id = $2", events, name
        )
    transactions = [one async for one in prune_executions(owner, cutoff, dry_run=False)]
    assert [progress.deleted for progress in transactions] == [2, 1, 1, 1, 0]


# Sources and dead letters.


async def test_idle_watermarks_are_deleted_and_others_kept(
    writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    for offset, source in enumerate(("idle", "late", "busy")):
        await writer.store(batch(log([occurrence()], begin=offset, source=source)))
    for source, days in (("idle", 61), ("late", 59)):
        await owner.execute(
            "UPDATE producer_progress SET changed_at = now() - $1::interval WHERE source = $2",
            days * DAY,
            source,
        )
    before = await time_before(owner, SOURCE_RETENTION)
    for dry_run in (True, False):
        assert await total(prune_sources(owner, before, dry_run=dry_run)) == (1, 1, 0)
    rows = await owner.fetch("SELECT source FROM producer_progress ORDER BY source")
    assert [row["source"] for row in rows] == ["busy", "late"]


async def test_closed_dead_letters_are_deleted_and_open_ones_kept(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection, cutoff: datetime
) -> None:
    await writer.store(batch(log([b"not json"] * 1005)))
    await owner.execute("UPDATE dead_letter SET refused_at = now() - interval '1 year'")
    async with DeadLetters.open(database.writer) as letters:
        ids = [letter.id async for letter in letters.list(Filter())]
        await letters.discard(ids[0])
    await owner.execute(
        "UPDATE dead_letter SET retried_at = now() - interval '91 days' WHERE id = ANY ($1)",
        ids[1:1003],
    )
    await owner.execute(
        "UPDATE dead_letter SET discarded_at = now() - interval '91 days' WHERE id = $1", ids[1003]
    )
    for dry_run in (True, False):
        sums = await total(prune_dead_letters(owner, cutoff, dry_run=dry_run))
        assert sums == (1003, 1003, 0)
    rows = await owner.fetch("SELECT id FROM dead_letter ORDER BY id")
    assert [row["id"] for row in rows] == [ids[0], ids[1004]]


# The command.


async def test_the_command_prints_what_it_removed(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    await store(writer, ["old", "new"])
    await writer.store(batch(log([b"not json"], begin=2, source="worker")))
    await age(owner, 91, "old")
    await owner.execute("UPDATE producer_progress SET changed_at = now() - interval '61 days'")
    await owner.execute("UPDATE dead_letter SET retried_at = now() - interval '91 days'")
    env = environment(configured(database_url=database.owner))

    def counts_of(output: str) -> list[str]:
        return [line.partition(", unchanged since ")[0] for line in output.splitlines()]

    output = await run_cli("prune", "--older-than", "90d", "--dry-run", "--dead-letters", env=env)
    assert counts_of(output) == [
        "would delete: 1 executions with 1 events",
        "would delete: 1 idle sources",
        "would delete: 1 closed dead letters",
    ]
    output = await run_cli("prune", "--older-than", "90d", env=env)
    assert counts_of(output) == ["deleted: 1 executions with 1 events", "deleted: 1 idle sources"]
    assert await kept(owner) == {"new": (1, 2)}
    assert await owner.fetchval("SELECT count(*) FROM dead_letter") == 1
    output = await run_cli("prune", "--older-than", "2160h", "--dead-letters", env=env)
    assert counts_of(output)[2] == "deleted: 1 closed dead letters"


async def test_a_service_role_cannot_prune(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    await store(writer, ["old"])
    await age(owner, 91, "old")
    env = environment(configured(database_url=database.writer))
    output = await run_cli("prune", "--older-than", "90d", env=env, code=2)
    assert output.startswith("deleted: 0 executions with 0 events")
    assert await kept(owner) == {"old": (1, 2)}


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_the_command_after_its_transaction(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection, stop_signal: signal.Signals
) -> None:
    names = [f"execution-{number:03}" for number in range(300)]
    await store(writer, names)
    await age(owner, 91, *names)
    terminal, end = pty.openpty()
    async with locked_event(database, names[150]) as waiters:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *("prune", "--older-than", "90d"),
            env=environment(configured(database_url=database.owner)),
            stdout=asyncio.subprocess.PIPE,
            stderr=end,
        )
        os.close(end)
        await waiters.until(1)
        process.send_signal(stop_signal)
    async with asyncio.timeout(DEADLINE):
        out, _ = await process.communicate()
    shown = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert process.returncode == 1
    assert out.decode().startswith("deleted: 200 executions with 200 events, unchanged since ")
    assert "100 executions checked, 100 deleted" in shown
    assert "execution-events: interrupted; deleted rows stay deleted" in shown
    assert (await kept(owner)).keys() == set(names[200:])
