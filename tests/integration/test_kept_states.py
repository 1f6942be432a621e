"""Kept states equal a recomputation from the events after every transaction of any writer."""

from datetime import timedelta
from random import Random

import asyncpg
import pytest

from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.dead_letters import DeadLetters, Filter, Result, State
from execution_events.store.write.prune import prune_executions, time_before
from tests.support import histories, states
from tests.support.databases import Database
from tests.support.readers import named
from tests.support.records import Log, log, refused

_LETTERS = 1
"""The partition of refused records."""


@pytest.mark.parametrize("seed", range(12))
async def test_random_histories_keep_states(
    database: Database, owner: asyncpg.Connection, seed: int
) -> None:
    """Batches, refused records, their retries, and prunes, in a random order."""
    rng = Random(seed)
    async with (
        BatchWriter(database.writer, "events") as writer,
        DeadLetters.open(database.writer) as letters,
    ):
        await writer.begin_partition(0, 0, "cluster")
        await writer.begin_partition(_LETTERS, 0, "cluster")
        partition = Log(writer)
        refusals = 0
        for occurrences in histories.batches(rng, most=40):
            match rng.randrange(8):
                case 0:
                    records = log(occurrences, _LETTERS, refusals)
                    await writer.store(refused(records))
                    refusals += len(records)
                case 1:
                    async for letter in letters.list(Filter(state=State.OPEN)):
                        assert (await letters.retry(letter.id)).result is Result.DONE
                        assert await states.differences(owner) == []
                case 2:
                    now = await time_before(owner, -timedelta(days=1))
                    async for _ in prune_executions(owner, now, dry_run=False):
                        assert await states.differences(owner) == []
                case _:
                    await partition.add(*occurrences)
            assert await states.differences(owner) == []


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
        await owner.execute("UPDATE execution SET warnings = $1, occurrences = $1", most)
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
