"""Watches: a list of events and then each change, as server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from itertools import chain
from typing import NamedTuple, Protocol

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from execution_events.errors import RetryableError
from execution_events.logs import Logger
from execution_events.metrics import ReaderMetrics
from execution_events.reader.query import Query
from execution_events.reader.rendering import in_language
from execution_events.reader.resumption import decode_event_id, encode_event_id
from execution_events.reader.streaming import (
    CHUNK_BYTES,
    HEADERS,
    PAGE_MAX_EVENTS,
    client_disconnected,
    response_body,
    response_start,
)
from execution_events.store.read import feeds
from execution_events.store.read.changes import (
    Change,
    ExecutionScope,
    Namespaces,
    RevisionDelta,
    Revisions,
    parse_revisions,
)
from execution_events.store.read.events import Page, Stream
from execution_events.store.read.feeds import Feed, Feeds
from execution_events.store.read.selection import Selection, selects
from execution_events.web.auth.access import Access, AccessError, Caller, IssuerUnavailableError

_log = Logger(__name__)

_RESET = b"event: reset\ndata: {}"
_FIELDS = {
    **HEADERS,
    "Content-Type": "text/event-stream",
    # Stops nginx from buffering the changes.
    "X-Accel-Buffering": "no",
}


class WatchTimeouts(NamedTuple):
    """Limits on the time that a watch waits for its client; seconds."""

    chunk: float = 20
    """Until the client has taken a chunk of about 64 KiB."""
    list: float = 300
    """Until it has taken the list, which can hold a snapshot."""
    keepalive: float = 15
    """Between comments, and between checks of the token."""


class EventSource(feeds.RevisionReader, Protocol):
    """The reads that lists and watches need; see `store.read.events`."""

    async def page(
        self, execution_id: str, selection: Selection, namespaces: Namespaces, limit: int
    ) -> Page: ...

    def stream(
        self,
        execution_id: str,
        selection: Selection,
        namespaces: Namespaces,
        page: Page | None = None,
    ) -> AbstractAsyncContextManager[Stream]: ...


class Watches(NamedTuple):
    """The resources that all watches of a process share."""

    events: EventSource
    feeds: Feeds
    access: Access
    metrics: ReaderMetrics
    timeouts: WatchTimeouts = WatchTimeouts()

    def open(self, query: Query, caller: Caller, headers: Headers) -> "Watch":
        """Return a watch of `query` for a request with these headers; raises 400 for a page."""
        if query.limit is not None or query.selection.after is not None:
            raise HTTPException(400, "limit, marker: not allowed on a watch")
        self.metrics.answers.labels("watch").inc()
        return Watch(self, query, caller, headers)


class Watch(Response):
    """A response that ends when its client disconnects, is too slow, or loses access.

    The client receives every change after its list exactly once. If the database fails the
    connection is closed, and the client resumes with `Last-Event-ID`.
    """

    def __init__(self, shared: Watches, query: Query, caller: Caller, headers: Headers) -> None:
        self._shared = shared
        self._query = query
        self._caller = caller
        self._request_headers = headers
        self._scope = ExecutionScope(query.execution_id, caller.namespaces)
        event_id = ",".join(headers.getlist("last-event-id"))
        self._revisions = decode_event_id(query, event_id) if event_id else None
        # The database may never have had a client's revisions, after a restore for example: the
        # first changes are read from it and not from the feed.
        self._is_verified = False
        self._wake = asyncio.Event()
        self._is_disconnected = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        disconnected = asyncio.create_task(client_disconnected(receive))
        disconnected.add_done_callback(self._on_disconnect)
        has_started = False
        try:
            async with (
                self._shared.feeds.joined(self._scope, self._wake) as feed,
                aclosing(self._chunks(feed)) as chunks,
            ):
                async for chunk in chunks:
                    if not has_started:
                        has_started = True
                        await send(response_start(_FIELDS))
                    # Sending to a disconnected client has no effect and raises nothing.
                    if self._is_disconnected or scope["method"] == "HEAD":
                        break
                    async with asyncio.timeout(self._shared.timeouts.chunk):
                        await send(response_body(chunk, more=True))
            if not has_started:
                # The service stops: an empty watch makes the client reconnect; an error could end
                # its attempts.
                await send(response_start(_FIELDS))
            await send(response_body(b"", more=False))
        except (RetryableError, TimeoutError) as error:
            if not has_started:
                raise
            if isinstance(error, TimeoutError):
                self._shared.metrics.refused.labels("slow_watcher").inc()
            _log.debug("watch_aborted", error=str(error) or "slow client")
        finally:
            disconnected.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await disconnected

    def _on_disconnect(self, _: object) -> None:
        self._is_disconnected = True
        self._wake.set()

    async def _chunks(self, feed: Feed) -> AsyncGenerator[bytes, None]:
        """Yield the body until the watch ends."""
        loop = asyncio.get_running_loop()
        interval = self._shared.timeouts.keepalive
        if self._revisions is not None:
            yield b": watching\n\n"
        sent, due = self._revisions, loop.time() + interval
        while not (self._is_disconnected or self._shared.feeds.is_closed):
            self._wake.clear()
            async with aclosing(self._updates(feed)) as updates:
                async for chunk in updates:
                    sent = self._revisions
                    yield chunk
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            if loop.time() >= due:
                if not await self._has_access():
                    return
                # The id moves past changes that the filters exclude.
                id_ = b"" if sent == self._revisions else b"\nid: " + self._event_id()
                sent, due = self._revisions, loop.time() + interval
                yield b": still watching" + id_ + b"\n\n"

    async def _updates(self, feed: Feed) -> AsyncGenerator[bytes, None]:
        """Yield everything since the watch's revisions: the changes, or the list again."""
        if self._revisions is not None:
            is_verified = self._is_verified or self._revisions == feed.known
            deltas = feed.after(self._revisions) if is_verified else None
            if deltas is None:
                deltas = await self._shared.events.deltas([(self._scope, self._revisions)])
            self._is_verified = True
            if all(delta.is_complete for delta in deltas):
                for delta in deltas:
                    for chunk in self._changes(delta):
                        yield chunk
                return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._shared.timeouts.list
        async with aclosing(self._list()) as chunks:
            async for chunk in chunks:
                yield chunk
                if loop.time() > deadline:
                    raise TimeoutError

    def _changes(self, delta: RevisionDelta) -> Iterator[bytes]:
        assert self._revisions is not None  # noqa: S101
        before = self._revisions
        messages = (
            message
            for change in delta.changes
            if change.revision > before.get(change.namespace, 0)
            and (message := self._change_message(change))
        )
        return self._chunked(messages, _latest(before, delta.after))

    async def _list(self) -> AsyncGenerator[bytes, None]:
        self._revisions = None
        selection, (execution_id, namespaces) = self._query.selection, self._scope
        events = self._shared.events
        page = await events.page(execution_id, selection, namespaces, PAGE_MAX_EVENTS)
        if page.last is None:
            messages = chain([_RESET], map(self._event_message, page.bodies))
            for chunk in self._chunked(messages, parse_revisions(page.revisions)):
                yield chunk
            return
        async with events.stream(execution_id, selection, namespaces, page) as stream:
            pending = [_RESET]
            async for bodies in stream.batches:
                # The last message carries the id, so one is always held back.
                pending += map(self._event_message, bodies)
                yield b"\n\n".join((*pending[:-1], b""))
                pending = pending[-1:]
            for chunk in self._chunked(pending, parse_revisions(stream.revisions)):
                yield chunk

    def _chunked(self, messages: Iterable[bytes], revisions: Revisions) -> Iterator[bytes]:
        """Yield messages in chunks; the last one carries the id of `revisions`.

        The watch's revisions change before the last chunk. Chunks are built one at a time: all of
        them, for many clients that do not read, would take too much memory.
        """
        chunk, size, previous = list[bytes](), 0, b""
        for message in messages:
            if previous:
                chunk.append(previous)
                size += len(previous)
            if size >= CHUNK_BYTES:
                yield b"\n\n".join((*chunk, b""))
                chunk, size = [], 0
            previous = message
        self._revisions = revisions
        if previous:
            yield b"\n\n".join((*chunk, previous + b"\nid: " + self._event_id(), b""))

    def _change_message(self, change: Change) -> bytes | None:
        if selects(self._query.selection, change):
            return self._event_message(change.body)
        # Only a rewritten event can have been selected before.
        if change.is_rewritten:
            metadata = msgspec.json.encode({"metadata": change.event.metadata})
            return b"event: gone\ndata: " + metadata
        return None

    def _event_message(self, body: bytes) -> bytes:
        lang = self._query.lang
        return b"data: " + (body if lang == "both" else in_language(body, lang))

    def _event_id(self) -> bytes:
        return encode_event_id(self._query, self._revisions or {}).encode()

    async def _has_access(self) -> bool:
        """Return whether the token still grants the same namespaces."""
        try:
            return await self._shared.access.caller(self._request_headers) == self._caller
        except AccessError:
            return False
        except IssuerUnavailableError:
            # Unverifiable for now: the last result stands.
            return True


def _latest(one: Revisions, other: Revisions) -> Revisions:
    return {
        namespace: max(one.get(namespace, 0), other.get(namespace, 0))
        for namespace in {**one, **other}
    }
