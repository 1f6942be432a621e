"""Feeds of the changes of watched executions; one query reads them for all watchers."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from execution_events.errors import RetryableError
from execution_events.logs import Logger
from execution_events.store.read.changes import (
    ExecutionScope,
    RevisionDelta,
    Revisions,
    parse_revisions,
)

_log = Logger(__name__)

_POLL_INTERVAL = 0.02
"""Seconds between the starts of two polls."""
_PAUSE_RATIO = 4
"""Minimum pause between two polls, as a multiple of the last poll's duration: polls use at most a
fifth of one connection's time, whatever the number of watched executions."""
_RETRY_DELAY = 1.0
"""Seconds between a failed poll and the next."""
_RETENTION_SECONDS = 5
_RETENTION_CHANGES = 256
"""Limits of the deltas that a feed keeps besides the last one. Watchers further behind read their
changes from the database."""


class RevisionReader(Protocol):
    """The reads that feeds need; `EventReader` implements them."""

    async def revisions(self, execution_id: str, namespaces: frozenset[str] | None) -> str: ...

    async def deltas(
        self, known: Sequence[tuple[ExecutionScope, Revisions]]
    ) -> list[RevisionDelta]: ...


class Feed:
    """The latest deltas of one execution scope, up to the revisions `known`.

    `known` is None until the first poll.
    """

    def __init__(self, scope: ExecutionScope) -> None:
        self.scope = scope
        self.known: Revisions | None = None
        self.failure: Exception | None = None
        """The error of the last poll, while `known` is None."""
        self.watchers: set[asyncio.Event] = set()
        self._deltas: deque[tuple[float, RevisionDelta]] = deque()

    def after(self, position: Revisions) -> list[RevisionDelta] | None:
        """Return the deltas from `position` up to `known`; None if the feed does not hold them."""
        known = self.known or {}
        if position == known:
            return []
        # A position ahead of the feed may come from a database that has since lost commits.
        if not _covers(known, position):
            return None
        deltas = [delta for _, delta in self._deltas if not _covers(position, delta.after)]
        if not deltas or not _covers(position, deltas[0].before):
            return None
        # A namespace in `position` alone may have been pruned.
        return deltas if position.keys() <= deltas[0].before.keys() else None

    def advance(self, delta: RevisionDelta, now: float) -> None:
        """Append a delta, read at the event loop's time `now`, and wake all watchers."""
        self.known, self.failure = delta.after, None
        self._deltas.append((now, delta))
        if not delta.is_complete:
            self._deltas.clear()
        changes = sum(len(delta.changes) for _, delta in self._deltas)
        while len(self._deltas) > 1 and changes > _RETENTION_CHANGES:
            changes -= len(self._deltas.popleft()[1].changes)
        for watcher in self.watchers:
            watcher.set()

    def forget(self, now: float) -> None:
        """Drop deltas that are older than the retention."""
        while self._deltas and self._deltas[0][0] < now - _RETENTION_SECONDS:
            self._deltas.popleft()


class Feeds:
    """The feeds of a process; each exists as long as it has a watcher."""

    def __init__(self, reader: RevisionReader) -> None:
        self._reader = reader
        self._feeds: dict[ExecutionScope, Feed] = {}
        self._watched = asyncio.Event()
        self.is_closed = False

    @classmethod
    @asynccontextmanager
    async def open(cls, reader: RevisionReader) -> AsyncIterator["Feeds"]:
        """Poll for changes until exit."""
        feeds = cls(reader)
        polling = asyncio.create_task(feeds._poll_repeatedly())
        try:
            yield feeds
        finally:
            feeds.close()
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)

    def close(self) -> None:
        """Set `is_closed` and wake all watchers, so that they end before a stop."""
        self.is_closed = True
        for feed in self._feeds.values():
            for watcher in feed.watchers:
                watcher.set()

    @asynccontextmanager
    async def joined(self, scope: ExecutionScope, watcher: asyncio.Event) -> AsyncIterator[Feed]:
        """Join the feed of `scope`; `watcher` is set whenever the feed advances.

        Later reads from the database are not older than the feed's first revisions. Raises the
        error of the first poll if it fails.
        """
        feed = self._feeds.setdefault(scope, Feed(scope))
        feed.watchers.add(watcher)
        self._watched.set()
        try:
            while feed.known is None and not self.is_closed:
                await watcher.wait()
                watcher.clear()
                if feed.failure is not None:
                    raise feed.failure
            yield feed
        finally:
            feed.watchers.discard(watcher)
            if not feed.watchers and self._feeds.get(scope) is feed:
                del self._feeds[scope]
                if not self._feeds:
                    self._watched.clear()

    async def _poll_repeatedly(self) -> None:
        is_failing = False
        loop = asyncio.get_running_loop()
        while True:
            await self._watched.wait()
            began = loop.time()
            try:
                await self._poll(loop)
            except Exception as error:
                # Any error: without further polls all watches would stay open and show nothing.
                if not is_failing and isinstance(error, RetryableError):
                    _log.warning("change_poll_failed", error=str(error))
                elif not is_failing:
                    _log.exception("change_poll_failed")
                is_failing = True
                self._fail(error)
            else:
                is_failing = False
            seconds = loop.time() - began
            await asyncio.sleep(
                _RETRY_DELAY
                if is_failing
                else max(_POLL_INTERVAL - seconds, _PAUSE_RATIO * seconds)
            )

    def _fail(self, error: Exception) -> None:
        """Fail watchers still waiting for their first poll."""
        for feed in self._feeds.values():
            if feed.known is None:
                feed.failure = error
                for watcher in feed.watchers:
                    watcher.set()

    async def _poll(self, loop: asyncio.AbstractEventLoop) -> None:
        known = [(feed, feed.known) for feed in self._feeds.values() if feed.known is not None]
        new = [feed for feed in self._feeds.values() if feed.known is None]
        deltas = await self._reader.deltas([(feed.scope, revisions) for feed, revisions in known])
        for (feed, revisions), delta in zip(known, deltas, strict=True):
            feed.forget(loop.time())
            if delta.after != revisions:
                feed.advance(delta, loop.time())
        texts = await asyncio.gather(*(self._reader.revisions(*feed.scope) for feed in new))
        for feed, text in zip(new, texts, strict=True):
            revisions = parse_revisions(text)
            feed.advance(RevisionDelta(revisions, revisions, ()), loop.time())


def _covers(position: Revisions, revisions: Revisions) -> bool:
    """Return whether `position` is at or past each of `revisions`."""
    return all(position.get(namespace, 0) >= revision for namespace, revision in revisions.items())
