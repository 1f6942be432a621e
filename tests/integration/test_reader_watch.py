"""Watches: the list, then each change exactly once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from httpx_sse import aconnect_sse

from tests.support.consumers import until
from tests.support.databases import Database
from tests.support.filling import fill
from tests.support.readers import EVENTS, Reader, named, reading
from tests.support.records import Log
from tests.support.tokens import token_file
from tests.support.watching import Message, Watcher, keyed

NEW = "/v1/executions/execution-9/events"
SSE = {"Accept": "text/event-stream"}


def told(messages: list[Message]) -> list[tuple[str, str]]:
    """Return the types and event names of messages."""
    return [(m.kind, m.data["metadata"]["name"] if m.data else "") for m in messages]


async def prune(owner: asyncpg.Connection) -> None:
    async with owner.transaction():
        for table in ("event", "execution", "action", "execution_change"):
            await owner.execute(f"DELETE FROM execution_events.{table}")


async def test_a_watch_sends_the_list_and_then_each_change(reader: Reader, written: Log) -> None:
    await written.add(named("b", 2), named("a", 1))
    watcher = Watcher()
    async with watcher.watching(reader.api, EVENTS) as watch:
        assert watch.response.status_code == 200
        assert watch.response.headers["Content-Type"] == "text/event-stream"
        assert watch.response.headers["Cache-Control"] == "private, no-cache, no-transform"
        messages = await watch.next(3)
        assert told(messages) == [("reset", ""), ("message", "a"), ("message", "b")]
        # The id comes with the last message of a revision.
        assert [bool(message.id) for message in messages] == [False, False, True]
        assert watcher.events == keyed(await reader.events())
        ids = {watcher.id}
        for number in range(5):
            await written.add(named("a", number), named(f"c{number}", 9))
            messages = await watch.next(2)
            assert told(messages) == [("message", "a"), ("message", f"c{number}")]
            assert [bool(message.id) for message in messages] == [False, True]
            ids.add(watcher.id)
        assert watcher.events == keyed(await reader.events())
        assert len(ids) == 6


async def test_a_client_library_reads_a_watch(reader: Reader, written: Log) -> None:
    await written.add(named("a"))
    async with aconnect_sse(reader.api, "GET", EVENTS) as source:
        messages = source.aiter_sse()
        first, second = [await anext(messages) for _ in range(2)]
        assert (first.event, second.event) == ("reset", "message")
        assert [second.json()] == await reader.events()
        await written.add(named("a", 1))
        third = await anext(messages)
        assert [third.json()] == await reader.events()
    async with aconnect_sse(
        reader.api, "GET", EVENTS, headers={"Last-Event-ID": second.id}
    ) as source:
        again = await anext(source.aiter_sse())
        assert (again.json(), again.id) == (third.json(), third.id)


async def test_a_watch_may_start_before_its_execution(reader: Reader, written: Log) -> None:
    watcher = Watcher()
    async with watcher.watching(reader.api, NEW) as watch:
        assert told(await watch.next()) == [("reset", "")]
        assert watcher.id
        await written.add(named("a", execution_id="execution-9"), named("b"))
        assert told(await watch.next()) == [("message", "a")]
        await written.add(named("a", execution_id="execution-9", namespace="other"))
        await watch.next()
        assert watcher.events == keyed(await reader.events(NEW))


@pytest.mark.parametrize("events", [256, 257, 1000])
async def test_a_long_list_is_watched(
    reader: Reader, owner: asyncpg.Connection, written: Log, events: int
) -> None:
    await fill(owner, events)
    watcher = Watcher()
    async with watcher.watching(reader.api, EVENTS, {"order": "desc"}) as watch:
        first = await watch.next(events + 1)
        assert [m.data["count"] for m in first[1:]] == list(range(events, 0, -1))
        assert [m for m in first if m.id] == first[-1:]
        await written.add(named("new"))
        assert told(await watch.next()) == [("message", "new")]


async def test_a_watch_resumes_from_its_last_id(reader: Reader, written: Log) -> None:
    await written.add(named("a"), named("b"))
    watcher = Watcher()
    async with watcher.watching(reader.api, EVENTS) as watch:
        await watch.next(3)
    await written.add(named("b", 1), named("c"))
    await written.add(named("c", 1))
    async with watcher.watching(reader.api, EVENTS) as watch:
        assert told(await watch.next(2)) == [("message", "b"), ("message", "c")]
    assert watcher.events == keyed(await reader.events())
    async with watcher.watching(reader.api, EVENTS) as watch:
        await written.add(named("d"))
        assert told(await watch.next()) == [("message", "d")]


async def test_changes_arrive_in_the_order_of_their_revisions(reader: Reader, written: Log) -> None:
    """Changes of one revision arrive in the order of the list."""
    await written.add(named("d", 9))
    watcher = Watcher()
    async with watcher.watching(reader.api, EVENTS) as watch:
        await watch.next(2)
    for names in ("c", "bz", "a", "d"):
        await written.add(*(named(name, 2 * (name == "b")) for name in names))
    async with watcher.watching(reader.api, EVENTS) as watch:
        messages = await watch.next(5)
    assert [name for _, name in told(messages)] == ["c", "z", "b", "a", "d"]


async def test_a_watch_cut_within_a_revision_gets_it_again(reader: Reader, written: Log) -> None:
    watcher = Watcher()
    async with watcher.watching(reader.api, EVENTS) as watch:
        await watch.next()
        await written.add(named("a"), named("b"))
        await watch.next(1)
    async with watcher.watching(reader.api, EVENTS) as watch:
        assert told(await watch.next(2)) == [("message", "a"), ("message", "b")]


@pytest.mark.parametrize("end", ["forgotten", "pruned", "starts again", "damaged", "other query"])
async def test_a_watcher_that_missed_changes_is_reset(
    reader: Reader, owner: asyncpg.Connection, written: Log, end: str
) -> None:
    await written.add(named("a"))
    watcher = Watcher()
    async with watcher.watching(reader.api, EVENTS) as watch:
        await watch.next(2)
    params = {}
    match end:
        case "forgotten":
            await written.add(named("b"))
            await written.add(named("c"))
            await owner.execute("DELETE FROM execution_events.execution_change WHERE names = '{b}'")
        case "pruned":
            await prune(owner)
        case "starts again":
            await prune(owner)
            await written.add(named("z"))
        case "damaged":
            watcher.id = watcher.id[:-4] + "AAAA"
        case "other query":
            params = {"type": "Normal"}
    async with watcher.watching(reader.api, EVENTS, params) as watch:
        assert told(await watch.next()) == [("reset", "")]
        await watch.until(keyed(await reader.events()))


async def test_a_pruned_execution_resets_its_watchers(
    reader: Reader, owner: asyncpg.Connection, written: Log
) -> None:
    await written.add(named("a"), named("b"))
    watcher = Watcher()
    async with watcher.watching(reader.api, EVENTS) as watch:
        await watch.next(3)
        await prune(owner)
        assert told(await watch.next()) == [("reset", "")]
        await written.add(named("c"))
        assert told(await watch.next()) == [("message", "c")]
    assert watcher.events == keyed(await reader.events())


async def test_only_watchers_from_before_a_prune_are_reset(
    reader: Reader, owner: asyncpg.Connection, written: Log
) -> None:
    await written.add(named("a"))
    before, other = Watcher(), Watcher()
    async with before.watching(reader.api, EVENTS) as watch:
        await watch.next(2)
    await prune(owner)
    async with other.watching(reader.api, EVENTS) as beside:
        assert told(await beside.next()) == [("reset", "")]
        await written.add(named("b"))
        assert told(await beside.next()) == [("message", "b")]
        async with before.watching(reader.api, EVENTS) as watch:
            assert told(await watch.next(2)) == [("reset", ""), ("message", "b")]


async def test_a_watch_sends_what_its_filter_selects(reader: Reader, written: Log) -> None:
    await written.add(named("a", elem_id="x"), named("b", elem_id="y"))
    watcher = Watcher()
    params = {"elemId": "x", "q": "Start", "lang": "en"}
    async with watcher.watching(reader.api, EVENTS, params) as watch:
        assert told(await watch.next(2)) == [("reset", ""), ("message", "a")]
        assert watcher.seen[-1].data["reason"] == "ActionStart"
        # One that starts to match, one that no longer matches, and one that never did.
        await written.add(named("b", 1, elem_id="x"))
        assert told(await watch.next()) == [("message", "b")]
        await written.add(named("a", 1, elem_id="y"), named("n", elem_id="y"))
        assert told(await watch.next()) == [("gone", "a")]
        assert watcher.seen[-1].data == {"metadata": {"name": "a", "namespace": "tenant"}}
        await written.add(named("n", 1, elem_id="y"), named("b", 2, elem_id="x"))
        assert told(await watch.next()) == [("message", "b")]
        assert watcher.events == keyed(await reader.events(params=params))


async def test_a_watch_sends_what_its_caller_may_read(
    database: Database, written: Log, tmp_path: Path
) -> None:
    tokens = {"one": ["tenant"], "both": ["tenant", "other"], "none": ["nothing"]}
    path = tmp_path / "tokens.json"
    path.write_text(token_file(tokens))
    async with reading(database.reader, tokens_file=str(path)) as reader:
        as_one, as_both, as_none = ({"X-Auth-Token": token} for token in tokens)
        async with (
            Watcher().watching(reader.api, EVENTS, headers=as_one) as one,
            Watcher().watching(reader.api, EVENTS, headers=as_both) as both,
            Watcher().watching(reader.api, EVENTS, headers=as_none) as none,
        ):
            for watch in (one, both, none):
                assert told(await watch.next()) == [("reset", "")]
            await written.add(named("a", namespace="other"))
            await written.add(named("b"))
            assert told(await both.next(2)) == [("message", "a"), ("message", "b")]
            assert told(await one.next()) == [("message", "b")]
            await written.add(named("c", namespace="nothing"))
            assert told(await none.next()) == [("message", "c")]


async def test_a_stop_ends_watches_in_order(database: Database, written: Log) -> None:
    await written.add(named("a"))
    begun = asyncio.Event()

    async def client(reader: Reader) -> None:
        async with Watcher().watching(reader.api, EVENTS) as watch:
            await watch.next(2)
            begun.set()
            # A truncated response raises.
            await watch.end()

    async with reading(database.reader) as reader:
        watching = asyncio.create_task(client(reader))
        await begun.wait()
        # The client is closed with the reader's context, so the reader is stopped within it.
        reader.stop.set()
        await watching


@pytest.mark.parametrize("params", [{"limit": 1}, {"type": ""}, {"unknown": 1}])
async def test_an_invalid_watch_is_refused(idle: Reader, params: dict[str, object]) -> None:
    response = await idle.get(EVENTS, params=params, headers=SSE)
    assert response.status_code == 400


@pytest.fixture
async def three(database: Database) -> AsyncIterator[Reader]:
    async with reading(database.reader, reader_max_streams=3) as reader:
        yield reader


async def test_concurrent_watches_are_limited(three: Reader) -> None:
    async with (
        Watcher().watching(three.api, EVENTS) as one,
        Watcher().watching(three.api, EVENTS) as two,
    ):
        await one.next()
        await two.next()
        async with Watcher().watching(three.api, NEW) as other:
            await other.next()
            response = await three.get(EVENTS, headers=SSE)
            assert response.status_code == 429

        async def has_room() -> bool:
            head = await three.api.request("HEAD", EVENTS, headers=SSE)
            assert head.content == b""
            return head.status_code == 200

        await until(has_room, "the place of a client that has left is free")
