"""Watches release their resources before they end."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers
from starlette.types import Message

from execution_events.metrics import ReaderMetrics
from execution_events.reader.query import parse_query
from execution_events.reader.watch import Watches, WatchTimeouts
from execution_events.store.read.changes import ExecutionScope, RevisionDelta, Revisions
from execution_events.store.read.events import Page, Stream
from execution_events.store.read.feeds import Feeds
from execution_events.store.read.selection import Position
from execution_events.web.auth.access import ANONYMOUS, Access
from tests.support.records import EPOCH

BODY = b'{"metadata":{"name":"a","namespace":"n"}}'


class Events:
    """A source of one streamed list without an end."""

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
            # Released in another turn of the loop, as a connection is.
            await asyncio.sleep(0)
            self.is_held = False


@pytest.mark.parametrize("end", ["stuck", "left", "too long", "cancelled"])
async def test_its_snapshot_is_released_when_it_ends(end: str) -> None:
    events, left, sent = Events(), asyncio.Event(), asyncio.Event()
    never = asyncio.Event()

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            assert events.is_held or not message["more_body"]
            sent.set()
            if end in ("stuck", "cancelled"):
                await never.wait()
            if end == "left":
                left.set()
                await asyncio.sleep(0)

    timeouts = WatchTimeouts(
        chunk=0.01 if end == "stuck" else 60, list=0 if end == "too long" else 60
    )
    registry = CollectorRegistry()
    metrics = ReaderMetrics(registry)
    async with Feeds.open(events) as feeds:
        watches = Watches(events, feeds, Access(None, metrics), metrics, timeouts)
        watch = watches.open(parse_query("e", b""), ANONYMOUS, Headers())
        watching = asyncio.create_task(watch({"method": "GET"}, receive, send))
        if end == "cancelled":
            await sent.wait()
            watching.cancel()
        held: list[bool] = []
        watching.add_done_callback(lambda _: held.append(events.is_held))
        await asyncio.wait([watching])
        assert held == [False]
        assert watching.cancelled() == (end == "cancelled")
        slow = registry.get_sample_value(
            "execution_events_refused_total", {"reason": "slow_watcher"}
        )
        assert slow == (1 if end in ("stuck", "too long") else None)
        assert not feeds._feeds
