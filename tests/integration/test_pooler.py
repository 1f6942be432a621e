"""Services behind PgBouncer: the reader in transaction mode, the consumer in session mode."""

import asyncio
import json
from itertools import count

import pytest

from execution_events.errors import MisconfiguredError
from execution_events.settings import Settings
from execution_events.store.connection import connect
from execution_events.store.read.events import EventReader
from execution_events.store.read.selection import Selection
from execution_events.store.write.batches import BatchWriter
from tests.support.configuration import configured
from tests.support.consumers import consuming, until
from tests.support.databases import Database, administrator
from tests.support.occurrences import Fetch
from tests.support.poolers import PGBOUNCER, pooled
from tests.support.processes import environment, run_cli
from tests.support.readers import EVENTS, named, reading
from tests.support.records import batch, log

pytestmark = [
    pytest.mark.more,
    pytest.mark.skipif(PGBOUNCER is None, reason="`make pooler` installs PgBouncer"),
]

REFUSAL = "is behind a pooler in transaction mode"


async def store(database: Database, *names: str) -> None:
    """Store an event of each name, one second apart, in the database itself."""
    async with BatchWriter(database.writer, f"topic-{next(_topics)}") as writer:
        await writer.begin_partition(0, 0, "cluster")
        await writer.store(batch(log([named(name, second) for second, name in enumerate(names)])))


_topics = count()


async def test_the_reader_works_in_transaction_mode(database: Database) -> None:
    """Two readers, whose statements would have the same names, share three sessions."""
    names = [f"event-{number:04}" for number in range(2000)]
    await store(database, *names)
    async with (
        pooled(database, "transaction") as pooler,
        reading(database.reader) as direct,
        reading(pooler.reader, database_prepared_statements="false") as one,
        reading(pooler.reader, database_prepared_statements="false") as other,
    ):
        queries: list[dict[str, object]] = [
            {},
            {"limit": 7},
            {"limit": 300, "order": "desc"},
            {"reason": "ActionStart", "limit": 3},
            {"q": "start", "limit": 5},
            {"elemType": "KubeDAG.init", "excludeReason": "Other", "limit": 2},
        ]
        expected = [await direct.events(params=query) for query in queries]
        assert len(expected[0]) == len(names)
        for _ in range(10):
            answers = await asyncio.gather(
                *(reader.events(params=query) for reader in (one, other) for query in queries)
            )
            assert answers == expected * 2
        response = await one.get(EVENTS, params={"limit": 7})
        tag = {"If-None-Match": response.headers["ETag"]}
        assert (await other.get(EVENTS, params={"limit": 7}, headers=tag)).status_code == 304
        lines = await one.get(EVENTS, headers={"Accept": "application/x-ndjson"})
        assert [json.loads(line) for line in lines.text.splitlines()] == expected[0]
        for params in ({}, {"state": "running"}, {"executionId": "execution-1"}):
            [execution] = await direct.executions(params)
            for reader in (one, other):
                assert await reader.executions(params) == [execution]
        for reader in (one, other):
            assert (await reader.management.get("/readyz")).status_code == 200


async def test_a_watch_receives_changes_in_transaction_mode(database: Database) -> None:
    await store(database, "first")
    async with (
        pooled(database, "transaction") as pooler,
        reading(pooler.reader, database_prepared_statements="false") as reader,
        reader.api.stream("GET", EVENTS, headers={"Accept": "text/event-stream"}) as response,
    ):
        lines = response.aiter_lines()
        async for line in lines:
            if "first" in line:
                break
        await store(database, "second")
        async for line in lines:
            if "second" in line:
                break


async def test_a_stream_keeps_its_snapshot_in_transaction_mode(database: Database) -> None:
    await store(database, *(f"event-{number:04}" for number in range(1000)))
    async with (
        pooled(database, "transaction", pool_size=2) as pooler,
        EventReader.open(pooler.reader, prepares=False) as lists,
        lists.stream("execution-1", Selection(), None) as stream,
    ):
        names = [await anext(stream.batches)]
        await store(database, "later")
        # The stream's session is not given to others meanwhile.
        for _ in range(10):
            page = await lists.page("execution-1", Selection(descending=True), None, 1)
            assert page.revisions != stream.revisions
        names += [batch async for batch in stream.batches]
        assert len([body for batch in names for body in batch]) == 1000


async def test_a_session_in_transaction_mode_has_the_limits_of_its_role(
    database: Database,
) -> None:
    async with pooled(database, "transaction") as pooler:
        for url, timeout in ((pooler.reader, "10s"), (pooler.writer, "20s"), (pooler.ops, "30s")):
            async with administrator(url) as connection, connection.transaction():
                assert await connection.fetchval("SHOW statement_timeout") == timeout


async def test_the_reader_refuses_transaction_mode_with_prepared_statements(
    database: Database,
) -> None:
    async with pooled(database, "transaction") as pooler:
        env = environment(configured(database_url=pooler.reader, reader_port=0, management_port=0))
        await run_cli("reader", env=env, code=2)
        async with EventReader.open(pooler.reader) as lists:
            with pytest.raises(MisconfiguredError, match=f"{REFUSAL}.*PREPARED_STATEMENTS=false"):
                await lists.check()


@pytest.mark.parametrize("idle", [1, 3])
async def test_the_consumer_refuses_transaction_mode(
    database: Database, settings: Settings, idle: int
) -> None:
    async with pooled(database, "transaction", pool_size=idle) as pooler:
        # Other sessions of the pool, one of which may be exchanged for the consumer's.
        async with asyncio.TaskGroup() as others:
            for _ in range(idle):
                others.create_task(_sleep(pooler))
        with pytest.raises(MisconfiguredError, match=REFUSAL):
            async with connect(pooler.writer, "tests"):
                pass
        env = environment(configured(settings, database_url=pooler.writer))
        await run_cli("consumer", env=env, code=2)


async def _sleep(database: Database) -> None:
    async with administrator(database.writer) as connection:
        await connection.execute("SELECT pg_sleep(0.2)")


async def test_the_consumer_works_in_session_mode(
    database: Database, settings: Settings, fetch: Fetch
) -> None:
    lines = "".join(
        json.dumps(
            {
                "metadata": {"name": f"event-{number % 10}", "namespace": "tenant"},
                "reason": "启动##ActionStart",
                "type": "Normal",
                "elemType": "KubeDAG.init",
                "elemId": "job",
                "actionName": "create",
            }
        )
        + "\n"
        for number in range(500)
    )
    await run_cli(
        "publish", "--execution-id", "e", "-", env=environment(settings), stdin=lines.encode()
    )

    async def stored() -> bool:
        [row] = await fetch("SELECT sum(count)::bigint AS total FROM event")
        return bool(row["total"] == 500)

    async with (
        pooled(database, "session") as pooler,
        consuming(configured(settings, database_url=pooler.writer)),
    ):
        await until(stored, "500 occurrences")
        sessions = await fetch(
            "SELECT usename FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'execution-events consumer'"
        )
        assert [row["usename"] for row in sessions] == ["execution_events_writer"]
