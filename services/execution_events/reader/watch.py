"""A watch: what there is, then each change, as server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from itertools import chain
from typing import NamedTuple, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from execution_events.errors import RetryableError
from execution_events.logs import Logger
from execution_events.reader.query import Query
from execution_events.reader.rendering import in_language
from execution_events.reader.resumption import position_of, resumption_id
from execution_events.reader.streaming import (
    FETCHED_WHOLE,
    body_message,
    head_message,
    until_gone,
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

_log = Logger(__name__)

_CHUNK_BYTES = 64 * 1024
_RESET = b"event: reset\ndata: {}"
_HEADERS = {
    "Content-Type": "text/event-stream",
    # Or a proxy may keep the changes until it has enough of them.
    "X-Accel-Buffering": "no",
}


class WatchLimits(NamedTuple):
    """How long a watcher may take, and be left alone; seconds."""

    chunk: float = 20
    """Until the client has taken a chunk of some 64 KiB."""
    list: float = 300
    """Until it has taken a whole list, which may hold a snapshot."""
    comment: float = 15
    """Between two comments that keep the connection, and between two looks at the token."""


class Lists(feeds.RevisionReader, Protocol):
    """What is asked of the store."""

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


class Watch(Response):
    """An answer that goes on until its client leaves, is too slow, or may not read any more.

    Nothing is missed and nothing comes twice between the list and the changes. Where the database
    fails the answer is cut, and a client that comes again goes on where it stood.
    """

    def __init__(
        self,
        lists: Lists,
        feeds: Feeds,
        query: Query,
        namespaces: Namespaces,
        last_event_id: str,
        headers: Mapping[str, str],
        is_allowed: Callable[[], Awaitable[bool]],
        is_slow: Callable[[], None],
        limits: WatchLimits,
    ) -> None:
        """`is_allowed` tells whether the caller may still read the same; `is_slow` is told."""
        self._lists = lists
        self._feeds = feeds
        self._query = query
        self._asked = ExecutionScope(query.execution_id, namespaces)
        self._position = position_of(query, last_event_id) if last_event_id else None
        # A client may stand where the database never was: it is asked first.
        self._is_known = False
        self._fields = {**headers, **_HEADERS}
        self._is_allowed = is_allowed
        self._is_slow = is_slow
        self._limits = limits
        self._wake = asyncio.Event()
        self._is_gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.create_task(until_gone(receive))
        leaving.add_done_callback(self._leave)
        is_started = False
        try:
            async with (
                self._feeds.joined(self._asked, self._wake) as feed,
                aclosing(self._chunks(feed)) as chunks,
            ):
                async for chunk in chunks:
                    if not is_started:
                        is_started = True
                        await send(head_message(self._fields))
                    # What is sent to a client that has left is dropped without a sign.
                    if self._is_gone or scope["method"] == "HEAD":
                        break
                    async with asyncio.timeout(self._limits.chunk):
                        await send(body_message(chunk, more=True))
            if not is_started:
                # At a stop: the client comes again, where an error would end some.
                await send(head_message(self._fields))
            await send(body_message(b"", more=False))
        except (RetryableError, TimeoutError) as error:
            if not is_started:
                raise
            if isinstance(error, TimeoutError):
                self._is_slow()
            _log.debug("a watch was cut", reason=str(error) or "too slow")
        finally:
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving

    def _leave(self, _: object) -> None:
        self._is_gone = True
        self._wake.set()

    async def _chunks(self, feed: Feed) -> AsyncGenerator[bytes, None]:
        """The body, piece by piece, until the watch ends."""
        loop = asyncio.get_running_loop()
        if self._position is not None:
            yield b": watching\n\n"
        told, due = self._position, loop.time() + self._limits.comment
        while not (self._is_gone or self._feeds.is_closed):
            self._wake.clear()
            async with aclosing(self._news(feed)) as news:
                async for chunk in news:
                    told = self._position
                    yield chunk
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            if loop.time() >= due:
                if not await self._is_allowed():
                    return
                # The id goes along when changes went by that this watch does not show.
                id_ = b"" if told == self._position else b"\nid: " + self._id()
                told, due = self._position, loop.time() + self._limits.comment
                yield b": still watching" + id_ + b"\n\n"

    async def _news(self, feed: Feed) -> AsyncGenerator[bytes, None]:
        """What there is since the position, which moves on before the last piece of each step."""
        if self._position is not None:
            is_known = self._is_known or self._position == feed.known
            steps = feed.after(self._position) if is_known else None
            if steps is None:
                steps = await self._lists.deltas([(self._asked, self._position)])
            self._is_known = True
            if all(step.is_complete for step in steps):
                for step in steps:
                    for chunk in self._step(step):
                        yield chunk
                return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.list
        async with aclosing(self._whole()) as pieces:
            async for chunk in pieces:
                yield chunk
                if loop.time() > deadline:
                    raise TimeoutError

    def _step(self, step: RevisionDelta) -> Iterator[bytes]:
        assert self._position is not None  # noqa: S101
        before = self._position
        messages = (
            message
            for change in step.changes
            if change.revision > before.get(change.namespace, 0)
            and (message := self._message(change))
        )
        return self._pieces(messages, _later(before, step.after))

    async def _whole(self) -> AsyncGenerator[bytes, None]:
        self._position = None
        selection, (execution_id, namespaces) = self._query.selection, self._asked
        page = await self._lists.page(execution_id, selection, namespaces, FETCHED_WHOLE)
        if page.last is None:
            messages = chain([_RESET], map(self._listed, page.bodies))
            for chunk in self._pieces(messages, parse_revisions(page.revisions)):
                yield chunk
            return
        async with self._lists.stream(execution_id, selection, namespaces, page) as stream:
            held = [_RESET]
            async for bodies in stream.batches:
                # The id comes with the last, so one is held back.
                held += map(self._listed, bodies)
                yield b"\n\n".join((*held[:-1], b""))
                held = held[-1:]
            for chunk in self._pieces(held, parse_revisions(stream.revisions)):
                yield chunk

    def _pieces(self, messages: Iterable[bytes], position: Revisions) -> Iterator[bytes]:
        """Messages in chunks. With the last the watch is at `position`, whose id goes along.

        One chunk at a time: all of them, for each of many that do not read, would be too much.
        """
        piece, size, held = list[bytes](), 0, b""
        for message in messages:
            if held:
                piece.append(held)
                size += len(held)
            if size >= _CHUNK_BYTES:
                yield b"\n\n".join((*piece, b""))
                piece, size = [], 0
            held = message
        self._position = position
        if held:
            yield b"\n\n".join((*piece, held + b"\nid: " + self._id(), b""))

    def _message(self, change: Change) -> bytes | None:
        if selects(self._query.selection, change):
            return self._listed(change.body)
        # Only then a client can have it.
        if change.is_rewritten:
            metadata = msgspec.json.encode({"metadata": change.event.metadata})
            return b"event: gone\ndata: " + metadata
        return None

    def _listed(self, body: bytes) -> bytes:
        lang = self._query.lang
        return b"data: " + (body if lang == "both" else in_language(body, lang))

    def _id(self) -> bytes:
        return resumption_id(self._query, self._position or {}).encode()


def _later(one: Revisions, other: Revisions) -> Revisions:
    return {
        namespace: max(one.get(namespace, 0), other.get(namespace, 0))
        for namespace in {**one, **other}
    }
