"""The pool of the reader's connections, on a real server."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest

from execution_events.store.read import pool as pool_module
from execution_events.store.read.pool import ReadingPool
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database, administrator

_APPLICATION = "pool under test"
_SETTINGS: Mapping[str, str] = {"timezone": "UTC"}


@asynccontextmanager
async def opened(database: Database, size: int) -> AsyncIterator[ReadingPool]:
    async with ReadingPool.open(database.reader, _APPLICATION, size, _SETTINGS) as pool:
        yield pool


async def sessions(database: Database) -> set[int]:
    """Return the process ids of the pool's sessions."""
    async with administrator(database.administrator) as connection:
        rows = await connection.fetch(
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = $1",
            _APPLICATION,
        )
    return {row["pid"] for row in rows}


async def session_used(pool: ReadingPool) -> int:
    async with pool.acquire() as connection:
        return connection.get_server_pid()


async def execute(pool: ReadingPool, *statements: str) -> None:
    async with pool.acquire() as connection:
        for statement in statements:
            await connection.execute(statement)


async def turns() -> None:
    """Run the tasks that are ready until they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_connections_are_opened_on_demand_and_used_again(database: Database) -> None:
    async with opened(database, size=3) as pool:
        assert await sessions(database) == set()
        first = await session_used(pool)
        assert await session_used(pool) == first
        async with pool.acquire() as one, pool.acquire() as other:
            assert one.get_server_pid() == first
            assert await sessions(database) == {first, other.get_server_pid()}


async def test_a_pool_never_has_more_connections_than_its_size(database: Database) -> None:
    in_use = max_in_use = 0
    used = set()

    async def use(pool: ReadingPool) -> None:
        nonlocal in_use, max_in_use
        async with pool.acquire() as connection:
            in_use += 1
            max_in_use = max(max_in_use, in_use)
            used.add(connection.get_server_pid())
            await connection.execute("SELECT pg_sleep(0.005)")
            in_use -= 1

    async with opened(database, size=3) as pool:
        await asyncio.gather(*(use(pool) for _ in range(60)))
        assert max_in_use == len(used) == 3
        assert await sessions(database) == used


async def test_waiting_callers_are_served_in_order_and_before_new_ones(database: Database) -> None:
    served = []

    async def use(pool: ReadingPool, caller: str) -> None:
        async with pool.acquire() as connection:
            served.append(caller)
            await connection.execute("SELECT 1")

    async with opened(database, size=1) as pool:
        async with pool.acquire():
            waiting = []
            for caller in ("first", "second", "third"):
                waiting.append(asyncio.create_task(use(pool, caller)))
                await turns()
        # The connection is free, and the waiting callers have not run yet.
        await use(pool, "new")
        await asyncio.gather(*waiting)
    assert served == ["first", "second", "third", "new"]


async def test_a_cancelled_caller_leaves_the_queue(database: Database) -> None:
    async with opened(database, size=1) as pool:
        async with pool.acquire():
            cancelled = asyncio.create_task(session_used(pool))
            waiting = asyncio.create_task(session_used(pool))
            await turns()
            cancelled.cancel()
        async with asyncio.timeout(DEADLINE):
            await waiting
        assert cancelled.cancelled()


async def test_a_caller_waits_no_longer_than_the_timeout(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "CONNECT_TIMEOUT", 0.05)
    async with opened(database, size=1) as pool:
        async with pool.acquire():
            with pytest.raises(TimeoutError):
                await session_used(pool)
        # The caller has left the queue.
        await session_used(pool)


async def test_a_session_survives_an_error_of_a_statement(database: Database) -> None:
    async with opened(database, size=1) as pool:
        first = await session_used(pool)
        with pytest.raises(asyncpg.DivisionByZeroError):
            await execute(pool, "SELECT 1 / 0")
        assert await session_used(pool) == first


async def test_a_session_is_terminated_after_an_error_inside_a_transaction(
    database: Database,
) -> None:
    async with opened(database, size=1) as pool:
        first = await session_used(pool)
        with pytest.raises(asyncpg.DivisionByZeroError):
            await execute(pool, "BEGIN", "SELECT 1 / 0")
        assert await session_used(pool) != first
        await until_only_one_session(database)


async def test_a_session_is_terminated_after_a_cancellation(database: Database) -> None:
    async with opened(database, size=1) as pool:
        first = await session_used(pool)

        async def wait() -> None:
            async with pool.acquire() as connection:
                await connection.execute("SELECT pg_sleep(5)")

        waiting = asyncio.create_task(wait())

        async def is_waiting() -> bool:
            async with administrator(database.administrator) as connection:
                event = await connection.fetchval(
                    "SELECT wait_event FROM pg_stat_activity WHERE pid = $1", first
                )
            return bool(event == "PgSleep")

        await until(is_waiting, "the statement runs")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await session_used(pool) != first
        await until_only_one_session(database)


async def test_idle_connections_are_replaced_after_their_timeout(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database, size=2) as pool:
        async with pool.acquire() as one, pool.acquire() as other:
            idle = {one.get_server_pid(), other.get_server_pid()}
        monkeypatch.setattr(pool_module, "_IDLE_TIMEOUT", 0)
        assert await session_used(pool) not in idle
        await until_only_one_session(database)


async def test_connections_that_the_server_closed_are_replaced(database: Database) -> None:
    async with opened(database, size=2) as pool:
        async with pool.acquire() as one, pool.acquire() as other:
            idle = {one.get_server_pid(), other.get_server_pid()}
            connections = (one, other)
        async with administrator(database.administrator) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) pid", idle
            )

        async def are_closed() -> bool:
            return all(connection.is_closed() for connection in connections)

        await until(are_closed, "the connections are closed")
        assert await session_used(pool) not in idle


async def test_a_failed_connect_frees_its_slot(database: Database) -> None:
    async with opened(database._replace(reader=database.reader + "_absent"), size=1) as pool:
        for _ in range(3):
            with pytest.raises(asyncpg.InvalidCatalogNameError):
                await session_used(pool)


async def test_closing_closes_all_idle_connections(database: Database) -> None:
    async with opened(database, size=3) as pool:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(pool.acquire())
        assert len(await sessions(database)) == 3

    async def are_gone() -> bool:
        return not await sessions(database)

    await until(are_gone, "the sessions have ended")


async def until_only_one_session(database: Database) -> None:
    async def is_alone() -> bool:
        return len(await sessions(database)) == 1

    await until(is_alone, "the terminated session has ended")
