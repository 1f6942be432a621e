"""Recurrences update rows in place: no index is written (HOT).

One that ends an action again is a transition: it moves `finished`, which is indexed.
"""

from collections.abc import Sequence
from random import Random

import asyncpg
import pytest

from execution_events.events import Occurrence
from execution_events.store.write.batches import APPLICATION, BatchWriter
from tests.support.consumers import until
from tests.support.databases import Database
from tests.support.readers import named
from tests.support.records import Log

EXECUTIONS = 40
BATCHES = 60
SHARE = 0.95
CODES = ("ActionStart", "ActionRetry", "Unhealthy", "PullImage")
FAILURES = ("ActionStart", "ActionRetry", "PullImage", "ActionFailed")
"""Of an element that fails in each turn."""
TABLES = ("action", "event", "execution")


def events(turn: int, codes: Sequence[str] = CODES) -> list[Occurrence]:
    """Return an occurrence of each event of every execution, in the order of the codes."""
    return [
        named(
            f"object-{element}.{code}",
            turn + position / 10,
            execution_id=f"execution-{execution:036}",
            reason=f"原因##{code}",
            message=f"元素(job-{element})失败 ## Element(job-{element}) failed: exit code 137",
            type="Warning" if code in ("ActionRetry", "Unhealthy", "ActionFailed") else "Normal",
            elem_id=f"job-{element}",
        )
        for execution in range(EXECUTIONS)
        for element in range(3)
        for position, code in enumerate(codes)
    ]


@pytest.mark.parametrize("share", [1, 0.1], ids=["all", "some"])
async def test_updates_by_recurrences_are_heap_only(
    database: Database, owner: asyncpg.Connection, share: float
) -> None:
    shares = await _heap_only(database, owner, CODES, share)
    assert min(shares.values()) >= SHARE, shares


async def test_failures_that_recur_write_only_the_indexes_of_their_actions(
    database: Database, owner: asyncpg.Connection
) -> None:
    shares = await _heap_only(database, owner, FAILURES, 1)
    assert min(shares["event"], shares["execution"]) >= SHARE, shares
    assert shares["action"] == 0


async def _heap_only(
    database: Database, owner: asyncpg.Connection, codes: Sequence[str], share: float
) -> dict[str, float]:
    """Let a part of the events recur in each batch; return the part of heap-only updates."""
    rng = Random(0)
    before = await _stored(database, owner, [events(0, codes)])
    recurrences = [
        [event for event in events(turn, codes) if rng.random() < share]
        for turn in range(1, BATCHES + 1)
    ]
    after = await _stored(database, owner, recurrences)
    shares = {}
    for table in TABLES:
        updates, heap_only = (after[table][n] - before[table][n] for n in range(2))
        assert updates >= BATCHES
        shares[table] = heap_only / updates
    return shares


async def _stored(
    database: Database, owner: asyncpg.Connection, batches: list[list[Occurrence]]
) -> dict[str, tuple[int, int]]:
    """Store batches; return the updates and heap-only updates of each table so far."""
    async with BatchWriter(database.writer, "events") as writer:
        await writer.begin_partition(0, 0, "cluster")
        [position] = (await writer.stored_positions([0])).values()
        log = Log(writer, begin=position.next_offset)
        for batch in batches:
            await log.add(*batch)

    async def ended() -> bool:
        """Return True once the writer's session has ended, and so reported its figures."""
        sessions = await owner.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = $1",
            APPLICATION,
        )
        return bool(sessions == 0)

    await until(ended, "the writer's session ends")
    rows = await owner.fetch(
        "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
        " WHERE relname = ANY ($1)",
        TABLES,
    )
    return {row["relname"]: (row["n_tup_upd"], row["n_tup_hot_upd"]) for row in rows}
