"""The events of an execution: pages, streams and revisions."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

import msgspec

from execution_events.projection.body import Times, decode, with_microseconds
from execution_events.store.connection import fetch_one, translated_errors
from execution_events.store.read.changes import (
    CurrentRevisions,
    ExecutionScope,
    Namespaces,
    RevisionDelta,
    Revisions,
    deltas_since,
)
from execution_events.store.read.executions import (
    ExecutionPage,
    ExecutionSelection,
    read_executions,
)
from execution_events.store.read.pool import ReadingPool
from execution_events.store.read.selection import Position, Selection
from execution_events.store.schema.migrate import require_compatible
from execution_events.store.sessions import READER
from execution_events.store.sql import load_queries, number_arguments

_SQL = load_queries("listing")

_APPLICATION = "execution-events reader"
_STREAM_BATCH = 128
"""Rows of one fetch of a stream: 64 KiB of events of the usual size."""


class Page(NamedTuple):
    """Bodies of events (`projection.body`) and the revisions, from one snapshot.

    `last` is the position of the last event; None if no other event follows.
    """

    revisions: str
    bodies: list[bytes]
    last: Position | None


class Stream(NamedTuple):
    """Batches of bodies of events and the revisions, from one snapshot."""

    revisions: str
    batches: AsyncIterator[list[bytes]]


class EventReader:
    """Reads of executions over pools of connections; safe for concurrent use.

    Revisions change with every change of the events. Executions that a caller may not read look
    like absent ones. All methods raise `RetryableError` if PostgreSQL is unavailable or too slow.
    """

    def __init__(self, pool: ReadingPool, stream_pool: ReadingPool) -> None:
        self._pool = pool
        self._stream_pool = stream_pool
        self._current = CurrentRevisions(pool)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, database_url: str, size: int = 8, streams: int = 16, *, prepares: bool = True
    ) -> AsyncIterator["EventReader"]:
        """Open pools of at most `size` connections, and `streams` connections for streams.

        Slow streams thus never delay pages. Behind a pooler in transaction mode, `prepares` must be
        false.
        """
        opened = partial(
            ReadingPool.open, database_url, _APPLICATION, settings=READER, prepares=prepares
        )
        async with opened(size) as pool, opened(streams) as stream_pool:
            yield cls(pool, stream_pool)

    async def page(
        self,
        execution_id: str,
        selection: Selection,
        namespaces: Namespaces,
        limit: int,
        times: Times = "second",
        share: str | None = None,
    ) -> Page:
        """Return the first `limit` events of a selection, by a connection of `share`."""
        query = _ListQuery(execution_id, namespaces, times)
        query.select(selection)
        statement, arguments = query.page(limit)
        with translated_errors():
            async with self._pool.acquire(share) as connection:
                row = await fetch_one(connection, statement, *arguments)
        revisions, bodies, list_position, *moments = row
        if bodies is None:
            return Page(revisions or "", [], None)
        if moments:
            bodies = list(map(with_microseconds, bodies, *moments))
        if len(bodies) <= limit:
            return Page(revisions, bodies, None)
        bodies.pop()
        event = decode(bodies[-1]).metadata
        return Page(revisions, bodies, Position(list_position, event.name, event.namespace))

    @asynccontextmanager
    async def stream(
        self,
        execution_id: str,
        selection: Selection,
        namespaces: Namespaces,
        page: Page | None = None,
        times: Times = "second",
        share: str | None = None,
    ) -> AsyncIterator[Stream]:
        """Open a stream of all events of a selection, by a connection of `share`.

        If the revisions are still those of its first `page`, which has the same `times`, the stream
        takes the page's bodies, leaving it empty, and reads the events after it. The stream holds a
        snapshot and a connection: bound its time.
        """
        query = _ListQuery(execution_id, namespaces, times)
        statement, arguments = query.revisions()
        async with AsyncExitStack() as stack:
            with translated_errors():
                connection = await stack.enter_async_context(
                    self._stream_pool.acquire(share, "repeatable_read")
                )
                revisions = await connection.fetchval(statement, *arguments) or ""
                head: list[bytes] = []
                if page is not None:
                    if page.last is not None and page.revisions == revisions:
                        head = page.bodies.copy()
                        selection = msgspec.structs.replace(selection, after=page.last)
                    page.bodies.clear()
                query.select(selection)
                statement, arguments = query.events()
                cursor = await self._stream_pool.cursor(connection, statement, *arguments)

            async def batches(head: list[bytes]) -> AsyncIterator[list[bytes]]:
                for start in range(0, len(head), _STREAM_BATCH):
                    yield head[start : start + _STREAM_BATCH]
                del head
                while True:
                    with translated_errors():
                        rows = await cursor.fetch(_STREAM_BATCH)
                    if not rows:
                        return
                    if times == "second":
                        yield [row[0] for row in rows]
                    else:
                        yield [with_microseconds(body, *moments) for body, _, *moments in rows]

            stream = Stream(revisions, batches(head))
            # The page's bodies must not live as long as the stream.
            del head
            yield stream

    async def revisions(self, execution_id: str, namespaces: Namespaces) -> str:
        """Return the current revisions; concurrent callers share one query."""
        return await self._current.of(ExecutionScope(execution_id, namespaces))

    async def deltas(
        self, known: Sequence[tuple[ExecutionScope, Revisions]]
    ) -> list[RevisionDelta]:
        """Return the changes since each of the `known` revisions."""
        return await deltas_since(self._pool, known)

    async def executions(
        self,
        selection: ExecutionSelection,
        namespaces: Namespaces,
        limit: int,
        share: str | None = None,
    ) -> ExecutionPage:
        """Return the first `limit` executions of a selection, by a connection of `share`."""
        return await read_executions(self._pool, selection, namespaces, limit, share)

    async def check(self) -> None:
        """Raise `RetryableError` or `HaltError` unless the schema is current."""
        with translated_errors():
            async with self._pool.acquire() as connection:
                await require_compatible(connection)


class _ListQuery:
    """A statement joined from parts of `listing.sql`; a caller's input becomes arguments only."""

    def __init__(self, execution_id: str, namespaces: Namespaces, times: Times = "second") -> None:
        self._has_times = times == "micro"
        self._arguments: dict[str, object] = {"execution_id": execution_id}
        self._conditions = [_SQL["execution"]]
        self._order = _SQL["ascending"]
        if namespaces is not None:
            self._arguments["namespaces"] = sorted(namespaces)
            self._conditions.append(_SQL["namespaces"])
        self._tenancy = "\n    AND ".join(self._conditions)

    def select(self, selection: Selection) -> None:
        direction = "descending" if selection.descending else "ascending"
        self._order = _SQL[direction]
        if selection.after is not None:
            list_position, name, namespace = selection.after
            self._add(
                _SQL[f"after_{direction}"],
                # As text: asyncpg encodes the last microsecond of the year 9999 as infinity.
                list_position=list_position.isoformat(),
                name=name,
                namespace=namespace,
            )
        for kind, filters in (("only", selection.only), ("except", selection.exclude)):
            for column, values in filters:
                part = f"{kind}_reason" if column == "reason" else kind
                self._add(_SQL[part].format(column=column), **{f"{kind}_{column}": values})
        if selection.since is not None:
            self._add(_SQL["since"], since=selection.since.isoformat())
        if selection.until is not None:
            self._add(_SQL["until"], until=selection.until.isoformat())
        if selection.text is not None:
            self._add(_SQL["text"], text=selection.text)

    def revisions(self) -> tuple[str, list[object]]:
        return self._numbered(self._revisions())

    def events(self) -> tuple[str, list[object]]:
        return self._numbered(self._events())

    def page(self, limit: int) -> tuple[str, list[object]]:
        # The extra row tells whether events follow the page.
        self._arguments |= {"last": limit, "limit": limit + 1}
        return self._numbered(
            _SQL["page"].format(
                revisions=self._revisions(), events=self._events(), times=self._times("page_times")
            )
        )

    def _add(self, condition: str, **arguments: object) -> None:
        self._conditions.append(condition)
        self._arguments |= arguments

    def _revisions(self) -> str:
        return _SQL["revisions"].format(tenancy=self._tenancy)

    def _events(self) -> str:
        conditions = "\n    AND ".join(self._conditions)
        return _SQL["events"].format(
            tenancy=self._tenancy,
            conditions=conditions,
            order=self._order,
            times=self._times("event_times"),
        )

    def _times(self, part: str) -> str:
        return _SQL[part] if self._has_times else ""

    def _numbered(self, statement: str) -> tuple[str, list[object]]:
        numbered, names = number_arguments(statement)
        return numbered, [self._arguments[name] for name in names]
