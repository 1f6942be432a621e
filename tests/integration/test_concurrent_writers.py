"""Concurrent writers of an execution neither lose nor duplicate occurrences, nor deadlock."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from random import Random

import asyncpg
import pytest

from execution_events.errors import HaltError
from execution_events.events import Occurrence
from execution_events.projection.fold import first_objects, fold
from execution_events.store.connection import connect
from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.dead_letters import DeadLetters, Filter, Result
from execution_events.store.write.events import prepare, write_events
from execution_events.store.write.known import KnownExecutions
from execution_events.store.write.prune import prune_executions, time_before
from tests.support import states
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database, administrator
from tests.support.readers import named
from tests.support.records import Log, log, refused

WRITERS = 3
BATCHES = 60


@pytest.fixture
async def writers(database: Database) -> AsyncIterator[list[Log]]:
    """Writers, each with a partition of its own."""
    async with AsyncExitStack() as stack:
        logs = []
        for partition in range(WRITERS):
            writer = BatchWriter(database.writer, "events")
            await stack.enter_async_context(writer)
            await writer.begin_partition(partition, 0, "cluster")
            logs.append(Log(writer, partition))
        yield logs


def crowd(rng: Random) -> list[Occurrence]:
    """Occurrences of few executions and events, in any order, so that writers conflict."""
    return [
        named(
            f"object.{rng.randrange(12)}",
            rng.randrange(10),
            execution_id=f"execution-{rng.randrange(3)}",
            namespace=rng.choice(["m", "n"]),
            reason=rng.choice(["a", "b##ActionStart", "c##ActionFailed"]),
            elem_id=rng.choice(["a", "b"]),
            count=rng.randint(1, 5),
        )
        for _ in range(rng.randint(1, 8))
    ]


async def refuse(database: Database, occurrences: list[Occurrence]) -> None:
    """Store them as dead letters that the database refused."""
    async with BatchWriter(database.writer, "events") as writer:
        await writer.begin_partition(WRITERS, 0, "cluster")
        await writer.store(refused(log(occurrences, WRITERS)))


def identity(event: Occurrence) -> tuple[str, str, str]:
    return event.execution_id, event.namespace, event.name


async def counts(owner: asyncpg.Connection, table: str = "event") -> Counter[tuple[str, ...]]:
    rows = await owner.fetch(
        f"SELECT execution_id, namespace, name, sum(count) AS count FROM {table} GROUP BY 1, 2, 3"
    )
    return Counter({tuple(row)[:3]: int(row["count"]) for row in rows})


async def check_executions(owner: asyncpg.Connection) -> None:
    """Compare executions with their events, and require revisions without gaps."""
    wrong = await owner.fetch(
        "SELECT * FROM (SELECT execution_id, namespace, events, occurrences FROM execution) AS one"
        " FULL JOIN (SELECT execution_id, namespace, count(*) AS events, sum(count) AS occurrences"
        " FROM event GROUP BY 1, 2) AS two USING (execution_id, namespace, events, occurrences)"
        " WHERE one IS NULL OR two IS NULL"
    )
    assert wrong == []
    gaps = await owner.fetch(
        "SELECT FROM (SELECT previous, lag(revision) OVER of_execution AS before"
        " FROM execution_change"
        " WINDOW of_execution AS (PARTITION BY execution_id, namespace ORDER BY revision)) AS one"
        " WHERE previous IS DISTINCT FROM before"
    )
    assert gaps == []
    current = await owner.fetch(
        "SELECT execution_id, namespace, revision FROM execution"
        " EXCEPT SELECT execution_id, namespace, max(revision) FROM execution_change GROUP BY 1, 2"
    )
    assert current == []


@pytest.mark.parametrize("seed", range(3))
async def test_concurrent_writers_count_every_occurrence_once(
    owner: asyncpg.Connection, writers: list[Log], seed: int
) -> None:
    rng = Random(seed)
    expected: Counter[tuple[str, ...]] = Counter()

    async def write(writer: Log) -> None:
        for _ in range(BATCHES):
            occurrences = crowd(rng)
            await writer.add(*occurrences)
            for one in occurrences:
                expected[identity(one)] += one.count

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*map(write, writers))
    assert await counts(owner) == expected
    await check_executions(owner)


async def test_concurrent_writers_retries_and_a_prune_count_every_occurrence_once(
    database: Database, owner: asyncpg.Connection, writers: list[Log]
) -> None:
    rng = Random(0)
    await owner.execute(
        "CREATE TABLE gone (LIKE event);"
        " CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        " $$BEGIN INSERT INTO execution_events.gone SELECT OLD.*; RETURN OLD; END$$;"
        " CREATE TRIGGER keep BEFORE DELETE ON event FOR EACH ROW EXECUTE FUNCTION keep()"
    )
    expected: Counter[tuple[str, ...]] = Counter()
    later = [
        named("object.1", 5, execution_id=f"execution-{number % 3}", namespace="m")
        for number in range(30)
    ]
    await refuse(database, later)
    left = WRITERS + 1
    pruned = snapshots = 0

    async def write(writer: Log) -> None:
        nonlocal left
        for _ in range(BATCHES):
            occurrences = crowd(rng)
            await writer.add(*occurrences)
            for one in occurrences:
                expected[identity(one)] += one.count
        left -= 1

    async def retry() -> None:
        nonlocal left
        async with DeadLetters.open(database.writer) as letters:
            async for letter in letters.list(Filter()):
                assert (await letters.retry(letter.id)).result is Result.DONE
        for one in later:
            expected[identity(one)] += one.count
        left -= 1

    async def prune() -> None:
        nonlocal pruned
        async with administrator(database.owner) as connection:
            await connection.execute("SET search_path = execution_events")
            while left:
                # Every execution that is not being changed.
                now = await time_before(connection, -timedelta(days=1))
                async for step in prune_executions(connection, now, dry_run=False):
                    pruned += step.deleted

    async def compare() -> None:
        """Require that each snapshot has the states of its events."""
        nonlocal snapshots
        async with administrator(database.owner) as connection:
            while left:
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    assert await states.differences(connection) == []
                snapshots += 1

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*map(write, writers), retry(), prune(), compare())
    assert snapshots > 10
    assert pruned > 10
    assert await counts(owner) + await counts(owner, "gone") == expected
    await check_executions(owner)


@asynccontextmanager
async def writing(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A writer's connection without a transaction."""
    async with connect(database.writer, "tests") as connection:
        await prepare(connection)
        yield connection


@pytest.mark.parametrize("first_is_stored", [True, False])
@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
async def test_a_second_writer_of_an_event_waits_for_the_first(
    database: Database,
    owner: asyncpg.Connection,
    writers: list[Log],
    known: bool,
    first_is_stored: bool,
) -> None:
    """It merges with the state that the first has committed."""
    if known:
        await writers[0].add(named("a"))
    both = [named("a", 1, reason="first", count=10), named("a", 2, reason="second", count=100)]
    ones, others = ([*fold([one]).values()] for one in both)
    objects = first_objects(both)
    async with writing(database) as one, writing(database) as other:
        transaction = one.transaction()
        await transaction.start()
        await write_events(one, ones, objects, KnownExecutions())

        async def second() -> None:
            async with other.transaction():
                await write_events(other, others, objects, KnownExecutions())

        writing_second = asyncio.create_task(second())

        async def waits() -> bool:
            return bool(
                await owner.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
                )
            )

        await until(waits, "the second waits")
        assert not writing_second.done()
        await (transaction.commit() if first_is_stored else transaction.rollback())
        await writing_second
    [row] = await owner.fetch("SELECT count, reason FROM event")
    assert tuple(row) == (known + 10 * first_is_stored + 100, "second")
    await check_executions(owner)
    changes = await owner.fetch("SELECT names, rewritten FROM execution_change ORDER BY revision")
    assert len(changes) == known + first_is_stored + 1
    # The reason differs from the stored one.
    assert changes[-1]["rewritten"] == ([True] if known or first_is_stored else [])


async def test_writers_of_different_executions_do_not_wait(
    database: Database, writers: list[Log]
) -> None:
    async with writing(database) as one, one.transaction():
        events, objects = [*fold([named("a")]).values()], first_objects([named("a")])
        await write_events(one, events, objects, KnownExecutions())
        async with asyncio.timeout(DEADLINE / 4):
            await writers[0].add(named("a", namespace="other"))
            await writers[1].add(named("a", execution_id="execution-2"))


@pytest.mark.tampers
async def test_an_event_without_its_execution_halts(
    owner: asyncpg.Connection, writers: list[Log]
) -> None:
    """No record is at fault, so none becomes a dead letter."""
    await writers[0].add(named("a"))
    await owner.execute("DELETE FROM execution")
    with pytest.raises(HaltError, match="23505"):
        await writers[0].add(named("a"), named("b"))
    assert await owner.fetchval("SELECT count(*) FROM dead_letter") == 0
    assert await owner.fetchval("SELECT count(*) FROM execution") == 0
    assert await owner.fetchval("SELECT count FROM event") == 1


@pytest.mark.parametrize("remembered", [True, False], ids=["known", "read"])
async def test_a_writer_counts_the_messages_that_it_keeps(
    database: Database, remembered: bool
) -> None:
    known = KnownExecutions()
    async with writing(database) as writer:
        for second, message in ((1, "short"), (2, "much longer"), (3, "")):
            log = [named(name, second, message=message + name) for name in ("a", "b")]
            async with writer.transaction():
                executions = await write_events(
                    writer, [*fold(log).values()], first_objects(log), known
                )
            [(key, execution)] = executions.items()
            assert execution.characters == len(message + "a") + len(message + "b")
            if remembered:
                known.put(key, execution)
