"""The events of one execution, as the reader lists them: pages, streams and revisions."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from execution_events.projection.body import decode
from execution_events.store.connection import translated_errors
from execution_events.store.read.changes import (
    Asked,
    CurrentRevisions,
    Namespaces,
    Revisions,
    Step,
    steps,
)
from execution_events.store.read.pool import ReadingPool
from execution_events.store.read.selection import Position, Selection
from execution_events.store.schema.migrate import require_current
from execution_events.store.sql import load_queries

_SQL = load_queries("listing")

_SERVER_SETTINGS = {
    "default_transaction_read_only": "on",
    "statement_timeout": "10s",
    # A list is read in the order of its index, always: statistics of small executions would have a
    # large one sorted for each of its pages.
    "enable_sort": "off",
    "plan_cache_mode": "force_generic_plan",
    "max_parallel_workers_per_gather": "0",
    # A statement takes less time than compiling it.
    "jit": "off",
}
_STREAM_BATCH = 128
"""Rows that a stream fetches at a time: 64 KiB where they have the usual size."""
_ARGUMENT = re.compile(r"\$([a-z_]+)")


class Page(NamedTuple):
    """The bodies of events (`projection.body`) and the revisions of one snapshot.

    `last` is where the last of them stands; None where there are none, or no others follow.
    """

    revisions: str
    bodies: list[bytes]
    last: Position | None


class Stream(NamedTuple):
    """The bodies of events, batch by batch, and the revisions of one snapshot."""

    revisions: str
    batches: AsyncIterator[list[bytes]]


class EventLists:
    """Lists of events over pools of connections; safe for concurrent use.

    The executions' revisions change with every change of their events; a caller who may read
    nothing of an execution gets what it would get were it not there. All raise `RetryableError`
    where PostgreSQL is away or too slow.
    """

    def __init__(self, pool: ReadingPool, streams: ReadingPool) -> None:
        self._pool = pool
        self._streams = streams
        self._current = CurrentRevisions(pool)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, database_url: str, size: int = 8, streams: int = 16
    ) -> AsyncIterator["EventLists"]:
        """Lists over at most `size` connections, which are opened when they are needed.

        Streams have `streams` connections of their own, so that slow ones keep nobody from a page.
        """
        name = "execution-events reader"
        async with (
            ReadingPool.open(database_url, name, size, _SERVER_SETTINGS) as pool,
            ReadingPool.open(database_url, name, streams, _SERVER_SETTINGS) as stream_pool,
        ):
            yield cls(pool, stream_pool)

    async def page(
        self, execution_id: str, selection: Selection, namespaces: Namespaces, limit: int
    ) -> Page:
        """The first `limit` events of a selection."""
        statement = _Statement(execution_id, namespaces)
        statement.select(selection)
        text, arguments = statement.page(limit)
        with translated_errors():
            async with self._pool.acquire() as connection:
                revisions, bodies, place = await connection.fetchrow(text, *arguments)
        if bodies is None:
            return Page(revisions or "", [], None)
        if len(bodies) <= limit:
            return Page(revisions, bodies, None)
        bodies.pop()
        event = decode(bodies[-1]).metadata
        return Page(revisions, bodies, Position(place, event.name, event.namespace))

    @asynccontextmanager
    async def stream(
        self, execution_id: str, selection: Selection, namespaces: Namespaces
    ) -> AsyncIterator[Stream]:
        """All events of a selection. It holds a snapshot and a connection: bound its time."""
        statement = _Statement(execution_id, namespaces)
        revisions_text, revisions_arguments = statement.revisions()
        statement.select(selection)
        text, arguments = statement.events()
        async with AsyncExitStack() as stack:
            with translated_errors():
                connection = await stack.enter_async_context(self._streams.acquire())
                await stack.enter_async_context(
                    connection.transaction(isolation="repeatable_read", readonly=True)
                )
                found = await connection.fetchval(revisions_text, *revisions_arguments)
                cursor = await connection.cursor(text, *arguments)

            async def batches() -> AsyncIterator[list[bytes]]:
                while True:
                    with translated_errors():
                        rows = await cursor.fetch(_STREAM_BATCH)
                    if not rows:
                        return
                    yield [row[0] for row in rows]

            yield Stream(found or "", batches())

    async def revisions(self, execution_id: str, namespaces: Namespaces) -> str:
        """The revisions alone, without reading events; shared by all who ask at the same time."""
        return await self._current.of(Asked(execution_id, namespaces))

    async def steps(self, known: Sequence[tuple[Asked, Revisions]]) -> list[Step]:
        """What changed since revisions that are known, for many at once."""
        return await steps(self._pool, known)

    async def check(self) -> None:
        """Raise `RetryableError` or `HaltError` unless lists can be read."""
        with translated_errors():
            async with self._pool.acquire() as connection:
                await require_current(connection)


class _Statement:
    """Joins the parts of `listing.sql`; whatever a caller sent becomes an argument."""

    def __init__(self, execution_id: str, namespaces: Namespaces) -> None:
        self._values: dict[str, object] = {"execution_id": execution_id}
        self._conditions = [_SQL["execution"]]
        self._order = _SQL["ascending"]
        if namespaces is not None:
            self._values["namespaces"] = sorted(namespaces)
            self._conditions.append(_SQL["namespaces"])
        self._tenancy = "\n    AND ".join(self._conditions)

    def select(self, selection: Selection) -> None:
        direction = "descending" if selection.descending else "ascending"
        self._order = _SQL[direction]
        if selection.after is not None:
            place, name, namespace = selection.after
            # Times go as text: asyncpg stores the last microsecond of the year 9999 as infinity.
            self._add(_SQL[f"after_{direction}"], place=place.isoformat())
            self._values |= {"name": name, "namespace": namespace}
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
        # One more tells whether others follow.
        self._values |= {"last": limit, "limit": limit + 1}
        return self._numbered(
            _SQL["page"].format(revisions=self._revisions(), events=self._events())
        )

    def _add(self, condition: str, **values: object) -> None:
        self._conditions.append(condition)
        self._values |= values

    def _revisions(self) -> str:
        return _SQL["revisions"].format(tenancy=self._tenancy)

    def _events(self) -> str:
        conditions = "\n    AND ".join(self._conditions)
        return _SQL["events"].format(
            tenancy=self._tenancy, conditions=conditions, order=self._order
        )

    def _numbered(self, text: str) -> tuple[str, list[object]]:
        """`text` with $1, $2, … for its arguments, and these."""
        numbers = {name: f"${number}" for number, name in enumerate(self._values, 1)}
        return _ARGUMENT.sub(lambda match: numbers[match[1]], text), list(self._values.values())
