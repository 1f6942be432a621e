"""Kept states equal a recomputation from the events after every transaction of any writer."""

import re
from datetime import timedelta
from random import Random

import asyncpg
import pytest

from execution_events.store.connection import connect
from execution_events.store.sessions import CONSUMER
from execution_events.store.sql import load_queries
from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.dead_letters import DeadLetters, Filter, Result, State
from execution_events.store.write.prune import prune_executions, time_before
from tests.support import states
from tests.support.databases import Database
from tests.support.histories import batches
from tests.support.readers import named
from tests.support.records import Log

_LETTERS = 2
"""The partition of refused records; those before it have a writer each."""


@pytest.mark.parametrize("seed", range(12))
async def test_random_histories_keep_states(
    database: Database, owner: asyncpg.Connection, seed: int
) -> None:
    await keep(Random(seed), database, owner, most=40, histories=1)


@pytest.mark.more
@pytest.mark.timeout(900)
async def test_ten_thousand_histories_keep_states(
    database: Database, owner: asyncpg.Connection
) -> None:
    """Concurrent ones share the batches, so that they take minutes instead of hours."""
    for seed in range(200):
        await keep(Random(seed), database, owner, most=8, histories=50)


async def keep(
    rng: Random, database: Database, owner: asyncpg.Connection, most: int, histories: int
) -> None:
    """Store batches of two writers, refused records, their retries, and prunes, in random order.

    States are compared after each step. The database is empty at the end.
    """
    async with (
        BatchWriter(database.writer, "events") as one,
        BatchWriter(database.writer, "events") as other,
        DeadLetters.open(database.writer) as letters,
    ):
        logs = []
        for partition, writer in enumerate((one, other, one)):
            await writer.begin_partition(partition, 0, "cluster")
            [stored] = (await writer.stored_positions([partition])).values()
            logs.append(Log(writer, partition, begin=stored.next_offset))
        for occurrences in batches(rng, most, histories):
            match rng.randrange(9):
                case 0:
                    # Each is retried by itself.
                    await logs[_LETTERS].refuse(*occurrences[:20])
                case 1:
                    async for letter in letters.list(Filter(state=State.OPEN)):
                        assert (await letters.retry(letter.id)).result is Result.DONE
                case 2:
                    await prune(owner)
                case choice:
                    await logs[choice % _LETTERS].add(*occurrences)
            assert await states.differences(owner) == []
        async for letter in letters.list(Filter(state=State.OPEN)):
            assert (await letters.discard(letter.id)).result is Result.DONE
    await prune(owner)


async def prune(owner: asyncpg.Connection) -> None:
    """Delete all executions."""
    before = await time_before(owner, -timedelta(days=1))
    async for _ in prune_executions(owner, before, dry_run=False):
        assert await states.differences(owner) == []


async def test_the_actions_of_elements_are_found_by_their_keys(database: Database) -> None:
    """A search by the execution alone would read all of its actions for each of them."""
    statement = load_queries("states")["stored_actions"]
    async with connect(database.writer, "test", CONSUMER) as connection:
        await connection.execute(f"PREPARE stored_actions (text) AS {statement}")
        rows = await connection.fetch("EXPLAIN EXECUTE stored_actions ('{1,2}')")
    plan = "\n".join(text for (text,) in rows)
    assert "event_element" in plan
    assert re.search(r"using action_pkey on action .*\n *Index Cond: .*\(action_key = ", plan), plan


async def test_warnings_below_their_maximum_are_the_sum_again(
    database: Database, owner: asyncpg.Connection
) -> None:
    """A sum that has stopped at its maximum is no longer the sum of what it holds."""
    most = states.COUNT_MAX
    async with BatchWriter(database.writer, "events") as writer:
        await writer.begin_partition(0, 0, "cluster")
        partition = Log(writer)
        await partition.add(named("a", type="Warning"), named("b", type="Warning", elem_id="b"))
        await owner.execute("UPDATE event SET count = $1", most)
        await owner.execute("UPDATE action SET warnings = $1, attempts = $1", most)
        await owner.execute(
            "UPDATE execution SET warnings = $1, occurrences = $1, revision = revision + 1", most
        )
        assert await states.differences(owner) == []
        for name, elem_id, warnings in (("a", "job", most), ("b", "b", 0)):
            await partition.add(named(name, 1, type="Normal", elem_id=elem_id))
            assert await owner.fetchval("SELECT warnings FROM execution") == warnings
            assert await states.differences(owner) == []


async def test_an_execution_keeps_the_object_of_its_first_record(
    database: Database, owner: asyncpg.Connection
) -> None:
    async with BatchWriter(database.writer, "events") as writer:
        await writer.begin_partition(0, 0, "cluster")
        partition = Log(writer)
        # In the order of the log, neither of time nor of names, and before its event has moved.
        await partition.add(
            named("b", 1, object_name="first"),
            named("a", 0, object_name="second"),
            named("b", 2, object_name="third"),
        )
        await partition.add(named("a", 3, object_name="fourth"))
    assert await owner.fetchval("SELECT object_name FROM execution") == "first"
