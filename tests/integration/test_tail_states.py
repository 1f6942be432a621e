"""The states of elements are the same for `tail`, in SQL and in the list of executions."""

from collections import Counter
from random import Random

import pytest

from execution_events.tail.event import decode_event
from execution_events.tail.states import Elements
from execution_events.tail.watched_list import Change
from tests.support import histories
from tests.support.databases import Database, administrator
from tests.support.readers import Reader
from tests.support.records import Log

MEMBERS = {
    "running": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "timed_out": "timedOut",
    "cancelled": "cancelled",
}


@pytest.mark.parametrize("seed", range(10))
async def test_tail_sql_and_the_list_agree_on_the_states_of_elements(
    database: Database, reader: Reader, written: Log, seed: int
) -> None:
    """After every batch of a random history; tail sees only what has changed."""
    rng = Random(seed)
    elements = {execution_id: Elements() for execution_id in ("e-1", "e-2")}
    seen: dict[str, dict[tuple[str, str], bytes]] = {each: {} for each in elements}
    lines = {"Accept": "application/x-ndjson"}
    async with administrator(database.ops) as ops:
        for batch in histories.batches(rng, most=12):
            await written.add(*batch)
            for execution_id, tailed in elements.items():
                path = f"/v1/executions/{execution_id}/events"
                response = await reader.get(path, params={"times": "micro"}, headers=lines)
                known = seen[execution_id]
                for line in response.content.splitlines():
                    event = decode_event(line.decode())
                    if known.get(event.key) != line:
                        known[event.key] = line
                        tailed.apply(Change("counted", event, 1))
                in_sql = await ops.fetch(
                    "SELECT state, count(*) FROM ops.elements_v1 WHERE execution_id = $1"
                    " GROUP BY state",
                    execution_id,
                )
                assert +tailed.counts == dict(map(tuple, in_sql))
                listed: Counter[str] = Counter()
                total = 0
                for execution in await reader.executions({"executionId": execution_id}):
                    total += execution["elements"]["total"]
                    for state, member in MEMBERS.items():
                        listed[state] += execution["elements"][member]
                listed["unknown"] = total - listed.total()
                assert (+listed, total) == (+tailed.counts, tailed.total)
