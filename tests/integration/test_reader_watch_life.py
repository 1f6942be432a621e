"""The life of a watch: comments, disconnects, slow clients, database outages."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from execution_events.reader.watch import WatchTimeouts
from execution_events.store.write.batches import BatchWriter
from tests.support.apis import Api, serving
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database, proxied
from tests.support.filling import fill
from tests.support.readers import EVENTS, named, transactions
from tests.support.records import Log
from tests.support.watching import Watcher, Watching, keyed

SSE = {"Accept": "text/event-stream"}


async def listed(api: Api) -> Any:
    return keyed((await api.client.get(EVENTS)).json())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Logged warnings and errors."""
    return [
        getattr(record, "event", record.getMessage())
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith(("execution", "uvicorn"))
    ]


# Comments.


async def test_periodic_comments_carry_the_id_of_filtered_changes(
    database: Database, written: Log
) -> None:
    await written.add(named("a", elem_id="x"))
    watcher = Watcher()
    params = {"elemId": "x"}

    async def comments(number: int) -> None:
        async def so_many() -> bool:
            return watcher.comments >= number

        await until(so_many, f"{number} comments")

    async with serving(database.reader, WatchTimeouts(keepalive=0.2)) as api:
        async with watcher.watching(api.client, EVENTS, params) as watch:
            await watch.next(2)
            begun = watcher.id
            taking = asyncio.create_task(watch.next())
            began = time.monotonic()
            await comments(3)
            assert time.monotonic() - began > 0.39
            # Nothing has changed.
            assert watcher.ids == 1
            await written.add(named("b", elem_id="y"))

            async def moved() -> bool:
                return watcher.id != begun

            await until(moved, "a comment has brought an id")
            hidden = watcher.id
            await comments(watcher.comments + 2)
            assert watcher.ids == 2
            await written.add(named("a", 1, elem_id="x"))
            assert [message.kind for message in await taking] == ["message"]
            assert len(watcher.seen) == 3
        watcher.id = hidden
        async with watcher.watching(api.client, EVENTS, params) as watch:
            [message] = await watch.next()
            assert message.data["metadata"]["name"] == "a"


async def test_the_duration_of_a_watch_is_not_its_response_time(
    database: Database, written: Log
) -> None:
    async with serving(database.reader, WatchTimeouts(keepalive=0.1)) as api:
        watcher = Watcher()
        began = time.monotonic()
        async with watcher.watching(api.client, EVENTS) as watch:
            await watch.next()
            answered = time.monotonic() - began
            taking = asyncio.create_task(watch.next())

            async def commented() -> bool:
                return watcher.comments >= 5

            await until(commented, "it has lasted")
            await written.add(named("a"))
            await taking

        async def ended() -> bool:
            return api.registry.get_sample_value("execution_events_open_streams") == 0

        await until(ended, "the watch has ended")
        value = api.registry.get_sample_value
        assert value("execution_events_request_seconds_count") == 1
        assert 0 < (value("execution_events_request_seconds_sum") or 0) <= answered
        assert value("execution_events_requests_total", {"status": "200"}) == 1


# Clients.


async def test_a_client_that_leaves_ends_its_list(
    database: Database,
    owner: asyncpg.Connection,
    admin: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the rest of the list would be read for no one."""
    await fill(owner, 100_000)
    async with serving(database.reader) as api:
        batches = 0
        stream = api.lists.stream

        @asynccontextmanager
        async def counted(*arguments: Any) -> AsyncIterator[Any]:
            async def counting(found: AsyncIterator[Any]) -> AsyncIterator[Any]:
                nonlocal batches
                async for bodies in found:
                    batches += 1
                    yield bodies

            async with stream(*arguments) as opened:
                yield opened._replace(batches=counting(opened.batches))

        monkeypatch.setattr(api.lists, "stream", counted)
        async with Watcher().watching(api.client, EVENTS) as watch:
            await watch.next(2)

        async def ended() -> bool:
            return not await transactions(admin)

        await until(ended, "its snapshot is free")
        assert 0 < batches < 100_000 / 128 / 2


async def test_a_watch_opened_during_a_stop_is_empty(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client connects again, to another reader."""
    async with serving(database.reader) as api:
        api.feeds.close()
        response = await api.client.get(EVENTS, headers=SSE)
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.content == b""
    assert not warnings(caplog)


async def test_an_execution_without_watchers_is_not_polled(
    database: Database, written: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written.add(named("a"))
    async with serving(database.reader) as api:
        looks: list[set[str]] = []
        steps = api.lists.deltas

        async def noted(known: Any) -> Any:
            looks.append({scope.execution_id for scope, _ in known})
            return await steps(known)

        monkeypatch.setattr(api.lists, "deltas", noted)

        async def looked_for(*executions: str) -> None:
            looks.clear()

            async def so() -> bool:
                return bool(looks) and looks[-1] == set(executions)

            await until(so, f"only {executions} are looked for")

        async with Watcher().watching(api.client, EVENTS) as watch:
            await watch.next()
            async with (
                Watcher().watching(api.client, EVENTS) as same,
                Watcher().watching(api.client, "/v1/executions/other/events") as other,
            ):
                await same.next()
                await other.next()
                await looked_for("execution-1", "other")
            await looked_for("execution-1")

        async def at_rest() -> bool:
            looks.clear()
            await asyncio.sleep(0.2)  # Ten times the pause between two polls.
            return not looks

        await until(at_rest, "nothing is polled")
        # Polling begins again.
        async with Watcher().watching(api.client, EVENTS) as watch:
            await watch.next(2)
            await written.add(named("b"))
            await watch.next()


# Changes.


async def test_a_watcher_that_keeps_up_misses_no_deleted_change(
    database: Database, written: Log, writer: BatchWriter
) -> None:
    await written.add(named("a"))
    watcher = Watcher()
    async with serving(database.reader) as api:
        for number in range(3):
            async with watcher.watching(api.client, EVENTS) as watch:
                await watch.next(2 if not number else 1)
                for other in range(3):
                    # All changes so far.
                    await writer.purge_changes(timedelta())
                    await written.add(named("a", 1), named(f"{number}.{other}"))
                    await watch.next(2)
                # A change while there is no watcher is stored.
                await writer.purge_changes(timedelta())
            await written.add(named("b", number))
        assert [message.kind for message in watcher.seen].count("reset") == 1


@pytest.mark.parametrize(("changes", "begins"), [(3, "message"), (4, "reset")])
async def test_a_watcher_that_missed_too_much_is_reset(
    database: Database,
    written: Log,
    monkeypatch: pytest.MonkeyPatch,
    changes: int,
    begins: str,
) -> None:
    """A list is streamed; missed changes are held in memory."""
    monkeypatch.setattr("execution_events.store.read.changes.CHANGES_LIMIT", 3)
    await written.add(named("a"))
    watcher = Watcher()
    async with serving(database.reader) as api:
        async with watcher.watching(api.client, EVENTS) as watch:
            await watch.next(2)
        for number in range(changes):
            await written.add(named(f"{number}"))
        async with watcher.watching(api.client, EVENTS) as watch:
            assert [message.kind for message in await watch.next()] == [begins]
            await watch.until(await listed(api))


# An unavailable database.


async def test_watches_survive_a_database_outage(
    database: Database,
    written: Log,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Several polls fail.
    monkeypatch.setattr("execution_events.store.read.feeds._RETRY_DELAY", 0.05)
    await written.add(named("a"))
    watchers = [Watcher() for _ in range(20)]
    async with (
        proxied(database.reader) as (proxy, url),
        serving(url, WatchTimeouts(keepalive=0.1)) as api,
        AsyncExitStack() as stack,
    ):
        watches: list[Watching] = []
        for watcher in watchers:
            opened = watcher.watching(api.client, EVENTS)
            watches.append(await stack.enter_async_context(opened))
        await asyncio.gather(*(watch.next(2) for watch in watches))
        caplog.clear()
        async with proxy.refusing():
            await written.add(named("b"))
            await written.add(named("a", 1))
            taking = [asyncio.create_task(watch.next(2)) for watch in watches]
            told = [watcher.comments for watcher in watchers]

            async def commented() -> bool:
                assert [task.exception() for task in taking if task.done()] == []
                counts = [watcher.comments for watcher in watchers]
                return all(a + 5 < b for a, b in zip(told, counts, strict=True))

            async def polled() -> bool:
                return "change_poll_failed" in warnings(caplog)

            await until(commented, "each has received comments")
            await until(polled, "a poll fails")
            # A new watcher is refused and must retry.
            assert (await api.client.get(EVENTS, headers=SSE)).status_code == 503
        await asyncio.gather(*taking)
        expected = await listed(api)
        assert all(watcher.events == expected for watcher in watchers)
        assert all(len(watcher.seen) == 4 for watcher in watchers)
    # One for all watchers, and one for the request.
    lines = warnings(caplog)
    assert lines.count("change_poll_failed") == 1
    assert len(lines) <= 2, lines


async def test_a_watch_that_cannot_start_is_refused(database: Database, written: Log) -> None:
    await written.add(named("a"))
    async with proxied(database.reader) as (proxy, url), serving(url) as api:
        async with proxy.refusing(), asyncio.timeout(DEADLINE / 2):
            responses = await asyncio.gather(
                *(api.client.get(EVENTS, headers=SSE) for _ in range(5))
            )
            for response in responses:
                assert response.status_code == 503
                assert response.headers["Retry-After"] == "1"
                assert response.headers["Content-Type"] == "application/json"
        async with Watcher().watching(api.client, EVENTS) as watch:
            assert [message.kind for message in await watch.next(2)] == ["reset", "message"]


@pytest.mark.tampers
async def test_watches_survive_an_unexpected_error(
    database: Database,
    written: Log,
    admin: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error that is not retried would leave watches open and silent."""
    await written.add(named("a"))
    watcher = Watcher()
    async with serving(database.reader) as api, watcher.watching(api.client, EVENTS) as watch:
        await watch.next(2)
        rename = "ALTER TABLE execution_events.execution RENAME COLUMN revision TO other"
        await admin.execute(rename)

        async def logged() -> bool:
            return any(record.levelno >= logging.ERROR for record in caplog.records)

        await until(logged, "the error is logged")
        assert (
            await api.client.get("/v1/executions/execution-2/events", headers=SSE)
        ).status_code == 500
        await admin.execute(rename.replace("revision TO other", "other TO revision"))
        await written.add(named("b"))
        [message] = await watch.next()
        assert message.data["metadata"]["name"] == "b"


@pytest.mark.tampers
async def test_a_restored_database_resets_watchers(
    database: Database, written: Log, owner: asyncpg.Connection
) -> None:
    """Its revisions are lower than those that watchers have seen."""
    await written.add(named("a"))
    await owner.execute("SET search_path = execution_events")
    here, away, late = Watcher(), Watcher(), Watcher()
    async with serving(database.reader) as api, here.watching(api.client, EVENTS) as watch:
        await watch.next(2)
        before = await listed(api)
        await owner.execute("CREATE TABLE restored AS SELECT * FROM execution")
        await written.add(named("b"))
        await watch.next()
        for watcher in (away, late):
            async with watcher.watching(api.client, EVENTS) as other:
                await other.next(3)
        async with owner.transaction():
            await owner.execute("DELETE FROM event WHERE name = 'b'")
            await owner.execute("DELETE FROM execution_change WHERE names = '{b}'")
            await owner.execute("UPDATE execution SET revision = restored.revision FROM restored")
        await watch.until(before)
        assert here.seen[-2].kind == "reset"
        async with away.watching(api.client, EVENTS) as other:
            assert (await other.next()).pop().kind == "reset"
            await other.until(before)
        # So does a watcher that connects after the revisions have advanced again.
        await written.add(named("c"))
        await watch.next()
        async with late.watching(api.client, EVENTS) as other:
            assert (await other.next()).pop().kind == "reset"
            await other.until(await listed(api))
