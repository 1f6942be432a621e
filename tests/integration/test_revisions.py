"""One statement tells all who wait what the revisions are, and nobody what they were."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest

from execution_events.errors import BatchTooSlowError
from execution_events.store.read import changes as revisions
from execution_events.store.read.changes import ExecutionScope, parse_revisions
from execution_events.store.read.events import EventReader
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
    """Lets statements through, and can hold back their answers."""

    def __init__(self) -> None:
        self.statements: list[list[ExecutionScope]] = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        self._current_revisions = revisions.current_revisions

    async def __call__(self, pool: asyncpg.Pool, asked: Sequence[ExecutionScope]) -> list[str]:
        number = len(self.statements)
        self.statements.append(list(asked))
        found = await self._current_revisions(pool, asked)
        if not number:
            await self.is_open.wait()
        return found

    async def sent(self, number: int) -> None:
        async def so_many() -> bool:
            return len(self.statements) >= number

        await until(so_many, f"{number} statements are sent")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(revisions, "current_revisions", gate)
    return gate


async def turns() -> None:
    """Let all that is ready run, so that it waits where it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def ask(lists: EventReader, *asked: ExecutionScope) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(lists.revisions(*one)) for one in asked]


async def test_who_comes_after_a_statement_was_sent_gets_the_next_with_all_others(
    lists: EventReader, gate: Gate, written: Log
) -> None:
    await written.add(named("a"))
    before = await revisions.current_revisions(lists._pool, [ONE])
    gate.statements.clear()
    gate.is_open.clear()
    [first] = ask(lists, ONE)
    await gate.sent(1)
    await written.add(named("b"))
    others = ask(
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
    # They have just seen a later one.
    assert parse_revisions(same[0])["tenant"] > parse_revisions(before[0])["tenant"]
    assert len(set(same)) == 1
    assert absent == foreign == ""
    # Each is in it once.
    sent, shared = gate.statements
    assert sent == [ONE]
    assert len(shared) == 3


async def test_many_at_the_same_time_share_the_first_one(
    lists: EventReader, gate: Gate, written: Log
) -> None:
    await written.add(named("a"))
    assert len(set(await asyncio.gather(*ask(lists, *[ONE] * 20)))) == 1
    assert gate.statements == [[ONE]]
    await lists.revisions(*ONE)
    assert len(gate.statements) == 2


async def test_each_gets_what_it_may_read(lists: EventReader, gate: Gate, written: Log) -> None:
    """In one statement, where what is foreign is as what is absent."""
    await written.add(
        *(named("a", execution_id=e, namespace=n) for e in ("e", "f") for n in ("m", "n"))
    )
    scopes = [None, frozenset({"m"}), frozenset({"n"}), frozenset({"m", "n"}), frozenset({"o"})]
    asked = [
        ExecutionScope(e, scope) for e in ("e", "absent", "f") for scope in [*scopes, frozenset()]
    ]
    found = await asyncio.gather(*ask(lists, *asked))
    assert len(gate.statements) == 1
    for one, text in zip(asked, found, strict=True):
        page = await lists.page(one.execution_id, Selection(), one.namespaces, 10)
        # Or an answer that is kept would never be the current one.
        assert text == page.revisions
        stored = set() if one.execution_id == "absent" else {"m", "n"}
        names = stored if one.namespaces is None else stored & one.namespaces
        assert set(parse_revisions(text)) == names


async def test_one_that_is_cancelled_disturbs_nobody(
    lists: EventReader, gate: Gate, written: Log
) -> None:
    await written.add(named("a"))
    gate.is_open.clear()
    sent = ask(lists, ONE, ONE)
    await gate.sent(1)
    waiting = ask(lists, ONE, ONE)
    await turns()
    for task in (sent[0], waiting[0]):
        task.cancel()
    await turns()
    gate.is_open.set()
    found = await asyncio.gather(*sent, *waiting, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in found] == [True, False] * 2
    assert found[1] == found[3] == await lists.revisions(*ONE)


async def test_all_can_be_cancelled(lists: EventReader, gate: Gate, written: Log) -> None:
    gate.is_open.clear()
    tasks = ask(lists, ONE, ONE)
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
    """Statements of the reader wait."""
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
        """Cancel the statement that waits, once it does."""

        async def cancelled() -> bool:
            return bool(
                await self._admin.fetch(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            )

        await until(cancelled, "a statement was cancelled")


async def test_an_error_reaches_all_who_waited_and_nobody_else(
    database: Database, lists: EventReader, gate: Gate, written: Log
) -> None:
    await written.add(named("a"))
    async with locked(database) as lock:
        sent = ask(lists, ONE, ONE)
        await gate.sent(1)
        waiting = ask(lists, ONE, ExecutionScope("execution-2", None))
        await turns()
        await lock.cancel()
        found = await asyncio.gather(*sent, return_exceptions=True)
        assert all(isinstance(error, BatchTooSlowError) for error in found)
        await gate.sent(2)
        assert not any(task.done() for task in waiting)
        await lock.cancel()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, BatchTooSlowError) for error in found)
        late = ask(lists, ONE)
        await gate.sent(3)
    assert parse_revisions(await late[0]).keys() == {"tenant"}
