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
from tests.support.records import Log, log, refused

_LETTERS = 1
"""The partition of refused records."""


@pytest.mark.parametrize("seed", range(12))
async def test_random_histories_keep_states(
    database: Database, owner: asyncpg.Connection, seed: int
) -> None:
    """Batches, halves of them, retries of dead letters and prunes, in a random order."""
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
