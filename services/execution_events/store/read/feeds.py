"""The changes of the executions that are watched: one statement finds them for all watchers."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from execution_events.errors import RetryableError
from execution_events.logs import Logger
from execution_events.store.read.changes import Asked, Revisions, Step, parse_revisions

_log = Logger(__name__)

_INTERVAL = 0.02
"""Seconds between two looks at what is watched."""
_REST = 4
"""The least ratio of the time between two looks to the time that one takes: looks never use more
than a part of one connection, however many executions are watched."""
_AWAY = 1.0
"""Seconds until the next look after one that failed."""
_KEPT_SECONDS = 5
_KEPT_CHANGES = 256
"""What a feed keeps, the last step aside, for watchers that have not come to it yet; others ask the
database what they have missed."""


class Lists(Protocol):
    """What is asked of the store."""

    async def revisions(self, execution_id: str, namespaces: frozenset[str] | None) -> str: ...

    async def steps(self, known: Sequence[tuple[Asked, Revisions]]) -> list[Step]: ...


class Feed:
    """The last changes of one execution, of what one kind of caller may read.

    `known` is up to where they go; None until it was looked for the first time.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.known: Revisions | None = None
        self.failure: Exception | None = None
        """Why the last look failed, while `known` is None."""
        self.watchers: set[asyncio.Event] = set()
        self._steps: deque[tuple[float, Step]] = deque()

    def after(self, position: Revisions) -> list[Step] | None:
        """The steps that lead on from `position`; None where the feed does not know them."""
        known = self.known or {}
        if position == known:
            return []
        # Who is ahead of it may stand where the database never was, or no longer is.
        if not _covers(known, position):
            return None
        left = [step for _, step in self._steps if not _covers(position, step.after)]
        if not left or not _covers(position, left[0].before):
            return None
        # Who has seen a namespace that was not there then may have seen one that was pruned.
        return left if position.keys() <= left[0].before.keys() else None

    def advance(self, step: Step, now: float) -> None:
        """Take the next step, at a time of the loop's clock, and wake all watchers."""
        self.known, self.failure = step.after, None
        self._steps.append((now, step))
        if not step.is_complete:
            self._steps.clear()
        changes = sum(len(step.changes) for _, step in self._steps)
        while len(self._steps) > 1 and changes > _KEPT_CHANGES:
            changes -= len(self._steps.popleft()[1].changes)
        for watcher in self.watchers:
            watcher.set()

    def forget(self, now: float) -> None:
        """Drop the steps that every watcher that keeps up has seen."""
        while self._steps and self._steps[0][0] < now - _KEPT_SECONDS:
            self._steps.popleft()


class Feeds:
    """The feeds of a process; each lives as long as somebody watches it."""

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        self._feeds: dict[Asked, Feed] = {}
        self._watched = asyncio.Event()
        self.is_closed = False

    @classmethod
    @asynccontextmanager
    async def open(cls, lists: Lists) -> AsyncIterator["Feeds"]:
        """Feeds that are looked at until the end."""
        feeds = cls(lists)
        looking = asyncio.create_task(feeds._look())
        try:
            yield feeds
        finally:
            feeds.close()
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def close(self) -> None:
        """Have every watcher end now, so that a stop need not wait for them."""
        self.is_closed = True
        for feed in self._feeds.values():
            for watcher in feed.watchers:
                watcher.set()

    @asynccontextmanager
    async def joined(self, asked: Asked, watcher: asyncio.Event) -> AsyncIterator[Feed]:
        """The feed of `asked`; `watcher` is set whenever it has moved.

        What is read from the database from here on is not older than where the feed begins. Raises
        the error of the database where it cannot begin.
        """
        feed = self._feeds.setdefault(asked, Feed(asked))
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
            if not feed.watchers and self._feeds.get(asked) is feed:
                del self._feeds[asked]
                if not self._feeds:
                    self._watched.clear()

    async def _look(self) -> None:
        is_away = False
        loop = asyncio.get_running_loop()
        while True:
            await self._watched.wait()
            began = loop.time()
            try:
                await self._move(loop)
            except Exception as error:
                # Whatever it is: without further looks all watches would stay and show nothing.
                if not is_away and isinstance(error, RetryableError):
                    _log.warning("cannot look for changes yet", error=str(error))
                elif not is_away:
                    _log.exception("cannot look for changes")
                is_away = True
                self._fail(error)
            else:
                is_away = False
            took = loop.time() - began
            await asyncio.sleep(_AWAY if is_away else max(_INTERVAL - took, _REST * took))

    def _fail(self, error: Exception) -> None:
        """Have those go that have waited for a first look; the others have what they have."""
        for feed in self._feeds.values():
            if feed.known is None:
                feed.failure = error
                for watcher in feed.watchers:
                    watcher.set()

    async def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        known = [(feed, feed.known) for feed in self._feeds.values() if feed.known is not None]
        new = [feed for feed in self._feeds.values() if feed.known is None]
        steps = await self._lists.steps([(feed.asked, revisions) for feed, revisions in known])
        for (feed, revisions), step in zip(known, steps, strict=True):
            feed.forget(loop.time())
            if step.after != revisions:
                feed.advance(step, loop.time())
        begins = await asyncio.gather(*(self._lists.revisions(*feed.asked) for feed in new))
        for feed, text in zip(new, begins, strict=True):
            revisions = parse_revisions(text)
            feed.advance(Step(revisions, revisions, ()), loop.time())


def _covers(position: Revisions, revisions: Revisions) -> bool:
    """Whether who stands at `position` has seen all up to `revisions`."""
    return all(position.get(namespace, 0) >= revision for namespace, revision in revisions.items())
