"""Concurrent callers share a query for current revisions and never get earlier ones."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest

from execution_events.errors import BatchTooSlowError
from execution_events.store.read import changes as revisions
from execution_events.store.read.changes import ExecutionScope, parse_revisions
from execution_events.store.read.events import EventReader
from execution_events.store.read.pool import ReadingPool
from execution_events.store.read.selection import Selection
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database, administrator
from tests.support.readers import named
from tests.support.records import Log

ONE = ExecutionScope("execution-1", None)


@pytest.fixture
async def lists(database: Database) -> AsyncIterator[EventReader]:
    async with EventReader.open(database.reader) as lists:
        yield lists


class Gate:
    """Records queries, and can delay the answer of the first."""

    def __init__(self) -> None:
        self.statements: list[list[ExecutionScope]] = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        self._current_revisions = revisions.current_revisions

    async def __call__(self, pool: ReadingPool, scopes: Sequence[ExecutionScope]) -> list[str]:
        is_first = not self.statements
        self.statements.append(list(scopes))
        current = await self._current_revisions(pool, scopes)
        if is_first:
            await self.is_open.wait()
        return current

    async def sent(self, count: int) -> None:
        async def reached() -> bool:
            return len(self.statements) >= count

        await until(reached, f"{count} statements are sent")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(revisions, "current_revisions", gate)
    return gate


async def turns() -> None:
    """Run the tasks that are ready until they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


def read_each(lists: EventReader, *scopes: ExecutionScope) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(lists.revisions(*scope)) for scope in scopes]


async def test_late_callers_share_the_next_query(
    lists: EventReader, gate: Gate, written: Log
) -> None:
    await written.add(named("a"))
    before = await revisions.current_revisions(lists._pool, [ONE])
    gate.statements.clear()
    gate.is_open.clear()
    [first] = read_each(lists, ONE)
    await gate.sent(1)
    await written.add(named("b"))
    others = read_each(
        lists,
        *[ONE] * 5,
        ExecutionScope("execution-2", None),
        ExecutionScope("execution-1", frozenset()),
    )
    await turns()
    assert not any(task.done() for task in (first, *others))
    gate.is_open.set()
    assert [await first] == before
    *same, absent, foreign = await asyncio.gather(*others)
    # Not those of the first query, which are older.
    assert parse_revisions(same[0])["tenant"] > parse_revisions(before[0])["tenant"]
    assert len(set(same)) == 1
    assert absent == foreign == ""
    # The shared query has each scope once.
    sent, shared = gate.statements
    assert sent == [ONE]
    assert len(shared) == 3


async def test_concurrent_callers_share_the_first_query(
    lists: EventReader, gate: Gate, written: Log
) -> None:
    await written.add(named("a"))
    assert len(set(await asyncio.gather(*read_each(lists, *[ONE] * 20)))) == 1
    assert gate.statements == [[ONE]]
    await lists.revisions(*ONE)
    assert len(gate.statements) == 2


async def test_each_caller_gets_its_namespaces(
    lists: EventReader, gate: Gate, written: Log
) -> None:
    """In one query; executions of other tenants look like absent ones."""
    await written.add(
        *(named("a", execution_id=e, namespace=n) for e in ("e", "f") for n in ("m", "n"))
    )
    scopes = [None, frozenset({"m"}), frozenset({"n"}), frozenset({"m", "n"}), frozenset({"o"})]
    wanted = [
        ExecutionScope(e, scope) for e in ("e", "absent", "f") for scope in [*scopes, frozenset()]
    ]
    texts = await asyncio.gather(*read_each(lists, *wanted))
    assert len(gate.statements) == 1
    for one, text in zip(wanted, texts, strict=True):
        page = await lists.page(one.execution_id, Selection(), one.namespaces, 10)
        # A cached answer is compared with this text.
        assert text == page.revisions
        stored = set() if one.execution_id == "absent" else {"m", "n"}
        names = stored if one.namespaces is None else stored & one.namespaces
        assert set(parse_revisions(text)) == names


async def test_a_cancelled_caller_does_not_affect_the_others(
    lists: EventReader, gate: Gate, written: Log
) -> None:
    await written.add(named("a"))
    gate.is_open.clear()
    sent = read_each(lists, ONE, ONE)
    await gate.sent(1)
    waiting = read_each(lists, ONE, ONE)
    await turns()
    for task in (sent[0], waiting[0]):
        task.cancel()
    await turns()
    gate.is_open.set()
    results = await asyncio.gather(*sent, *waiting, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in results] == [True, False] * 2
    assert results[1] == results[3] == await lists.revisions(*ONE)


async def test_queries_continue_after_all_callers_were_cancelled(
    lists: EventReader, gate: Gate, written: Log
) -> None:
    gate.is_open.clear()
    tasks = read_each(lists, ONE, ONE)
    await gate.sent(1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    gate.is_open.set()
    await written.add(named("a"))
    async with asyncio.timeout(DEADLINE):
        assert parse_revisions(await lists.revisions(*ONE)).keys() == {"tenant"}


@asynccontextmanager
async def locked(database: Database) -> AsyncIterator["Locked"]:
    """Lock the table, so that the reader's statements wait."""
    async with (
        administrator(database.administrator) as admin,
        administrator(database.owner) as holder,
        holder.transaction(),
    ):
        await holder.execute("LOCK TABLE execution_events.execution IN ACCESS EXCLUSIVE MODE")
        yield Locked(admin)


class Locked:
    def __init__(self, admin: asyncpg.Connection) -> None:
        self._admin = admin

    async def cancel(self) -> None:
        """Wait for a blocked statement, and cancel it."""

        async def cancelled() -> bool:
            return bool(
                await self._admin.fetch(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            )

        await until(cancelled, "a statement was cancelled")


async def test_an_error_reaches_the_callers_of_its_query_alone(
    database: Database, lists: EventReader, gate: Gate, written: Log
) -> None:
    await written.add(named("a"))
    async with locked(database) as lock:
        sent = read_each(lists, ONE, ONE)
        await gate.sent(1)
        waiting = read_each(lists, ONE, ExecutionScope("execution-2", None))
        await turns()
        await lock.cancel()
        errors = await asyncio.gather(*sent, return_exceptions=True)
        assert all(isinstance(error, BatchTooSlowError) for error in errors)
        await gate.sent(2)
        assert not any(task.done() for task in waiting)
        await lock.cancel()
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, BatchTooSlowError) for error in errors)
        late = read_each(lists, ONE)
        await gate.sent(3)
    assert parse_revisions(await late[0]).keys() == {"tenant"}
