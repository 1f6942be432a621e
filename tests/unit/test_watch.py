"""However a watch ends, what it took is free before it has ended."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from starlette.types import Message

from execution_events.reader.query import parse_query
from execution_events.reader.watch import Watch, WatchLimits
from execution_events.store.read.changes import ExecutionScope, RevisionDelta, Revisions
from execution_events.store.read.events import Page, Stream
from execution_events.store.read.feeds import Feeds
from execution_events.store.read.selection import Position
from tests.support.records import EPOCH

BODY = b'{"metadata":{"name":"a","namespace":"n"}}'


class Lists:
    """One list, of no end, that is streamed."""

    def __init__(self) -> None:
        self.is_held = False

    async def revisions(self, *_: object) -> str:
        return '{"n": 1}'

    async def deltas(
        self, known: Sequence[tuple[ExecutionScope, Revisions]]
    ) -> list[RevisionDelta]:
        return [RevisionDelta(before, before, ()) for _, before in known]

    async def page(self, *_: object) -> Page:
        return Page('{"n": 1}', [BODY], Position(EPOCH, "a", "n"))

    @asynccontextmanager
    async def stream(self, *_: object) -> AsyncIterator[Stream]:
        async def batches() -> AsyncIterator[list[bytes]]:
            while True:
                yield [BODY] * 1000

        self.is_held = True
        try:
            yield Stream('{"n": 1}', batches())
        finally:
            # As a connection, which is given back in no time.
            await asyncio.sleep(0)
            self.is_held = False


@pytest.mark.parametrize("end", ["stuck", "left", "too long", "cancelled"])
async def test_its_snapshot_is_free_when_it_has_ended(end: str) -> None:
    lists, left, sent = Lists(), asyncio.Event(), asyncio.Event()
    never = asyncio.Event()

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            assert lists.is_held or not message["more_body"]
            sent.set()
            if end in ("stuck", "cancelled"):
                await never.wait()
            if end == "left":
                left.set()
                await asyncio.sleep(0)

    async def is_allowed() -> bool:
        return True

    limits = WatchLimits(chunk=0.01 if end == "stuck" else 60, list=0 if end == "too long" else 60)
    slow: list[None] = []
    async with Feeds.open(lists) as feeds:
        watch = Watch(
            lists,
            feeds,
            parse_query("e", b""),
            None,
            "",
            {},
            is_allowed,
            lambda: slow.append(None),
            limits,
        )
        watching = asyncio.create_task(watch({"method": "GET"}, receive, send))
        if end == "cancelled":
            await sent.wait()
            watching.cancel()
        held: list[bool] = []
        watching.add_done_callback(lambda _: held.append(lists.is_held))
        await asyncio.wait([watching])
        assert held == [False]
        assert watching.cancelled() == (end == "cancelled")
        assert len(slow) == (end in ("stuck", "too long"))
        assert not feeds._feeds
