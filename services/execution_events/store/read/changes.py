"""The revisions of executions, and what changed between them, for many who ask at once."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from execution_events.projection.body import Body, decode
from execution_events.store.connection import translated_errors
from execution_events.store.read.pool import ReadingPool
from execution_events.store.sql import load_queries

_SQL = load_queries("revisions")

Namespaces = frozenset[str] | None
"""What a caller may read; None is all."""
Revisions = Mapping[str, int]
"""The revision of each namespace of an execution that a caller may read."""

MOST_CHANGES = 20_000
"""In one step, each time that an event changed: two of the largest batches. All are held at a time,
so who has missed more reads the list instead."""

_decoder = msgspec.json.Decoder(dict[str, int])


class Asked(NamedTuple):
    """An execution, and what of it the caller may read."""

    execution_id: str
    namespaces: Namespaces


class Change(msgspec.Struct, frozen=True, gc=False):
    """An event as it is after it was added or changed, last in its namespace's `revision`.

    `is_rewritten`: texts that it may be selected by are others than before.
    """

    namespace: str
    revision: int
    is_rewritten: bool
    first_timestamp: datetime
    last_timestamp: datetime
    body: bytes
    event: Body


class Step(NamedTuple):
    """What changed from one set of revisions to the next, in order of the revisions.

    Where it is not complete, something in between is not known any more, or too much, or the
    execution was pruned: only the whole list tells what there is.
    """

    before: Revisions
    after: Revisions
    changes: Sequence[Change]
    is_complete: bool = True


def parse_revisions(text: str) -> Revisions:
    """The revisions that a text of the store stands for."""
    return _decoder.decode(text) if text else {}


class CurrentRevisions:
    """What the revisions of executions are now: one statement for all who wait when it is sent.

    Nobody joins a statement that was sent: its snapshot may be older than what its caller has seen.
    For use in one event loop.
    """

    def __init__(self, pool: ReadingPool) -> None:
        self._pool = pool
        self._waiting: list[tuple[Asked, asyncio.Future[str]]] = []
        self._answering: asyncio.Task[None] | None = None

    async def of(self, asked: Asked) -> str:
        """The revisions of one execution, as a text that is equal only for equal ones.

        It is empty where the caller may read nothing. Raises `RetryableError` where PostgreSQL is
        away or too slow.
        """
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answer))
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer())
        return await answer

    async def _answer(self) -> None:
        try:
            while waiting := self._waiting:
                self._waiting = []
                # Many ask for the same.
                asked = list({one for one, _ in waiting})
                try:
                    found = dict(
                        zip(asked, await current_revisions(self._pool, asked), strict=True)
                    )
                except Exception as error:
                    for _, answer in waiting:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                for one, answer in waiting:
                    if not answer.done():
                        answer.set_result(found[one])
        finally:
            self._answering = None


async def current_revisions(pool: ReadingPool, asked: Sequence[Asked]) -> list[str]:
    """The revisions of each of `asked`, of one snapshot."""
    with translated_errors():
        async with pool.acquire() as connection:
            rows = await connection.fetch(_SQL["current_revisions"], *_scoped(asked))
    found = [""] * len(asked)
    for number, revisions in rows:
        found[number - 1] = revisions
    return found


async def steps(pool: ReadingPool, known: Sequence[tuple[Asked, Revisions]]) -> list[Step]:
    """What changed since each of `known`, or later, up to now."""
    texts = await current_revisions(pool, [asked for asked, _ in known])
    current = [parse_revisions(text) for text in texts]
    since = [
        (number, namespace, before.get(namespace, 0))
        for number, ((_, before), now) in enumerate(zip(known, current, strict=True))
        for namespace, revision in now.items()
        if revision != before.get(namespace)
    ]
    changes = await _changes(
        pool, [(known[number][0].execution_id, *rest) for number, *rest in since]
    )
    after = [dict(now) for now in current]
    found: dict[int, list[Change]] = defaultdict(list)
    # A namespace that is not there any more was pruned.
    complete = [
        before.keys() <= now.keys() for (_, before), now in zip(known, current, strict=True)
    ]
    for (number, namespace, _), (latest, is_complete, changed) in zip(since, changes, strict=True):
        after[number][namespace] = max(latest, after[number][namespace])
        found[number] += changed
        complete[number] &= is_complete
    return [
        Step(before, after[number], found[number], complete[number])
        for number, (_, before) in enumerate(known)
    ]


async def _changes(
    pool: ReadingPool, since: Sequence[tuple[object, ...]]
) -> list[tuple[int, bool, list[Change]]]:
    """For each (execution id, namespace, revision): the latest revision, whether all that changed
    is known, and that.
    """
    found: list[tuple[int, bool, list[Change]]] = [(0, False, []) for _ in since]
    if since:
        with translated_errors():
            async with pool.acquire() as connection:
                rows = await connection.fetch(
                    _SQL["changes"], *zip(*since, strict=True), MOST_CHANGES
                )
        for number, latest, revision, rewritten, first, last, body in rows:
            changes = found[number - 1][2]
            event = decode(body)
            changes.append(
                Change(event.metadata.namespace, revision, rewritten, first, last, body, event)
            )
            found[number - 1] = (latest, True, changes)
    return found


def _scoped(asked: Iterable[Asked]) -> tuple[list[object], ...]:
    """Execution ids and scopes of `asked`; then scopes and namespaces, one pair for each.

    Most callers share what they may read, so it is sent once.
    """
    scopes: dict[Namespaces, int] = {}
    executions: list[object] = []
    numbers: list[object] = []
    for execution_id, namespaces in asked:
        executions.append(execution_id)
        numbers.append(None if namespaces is None else scopes.setdefault(namespaces, len(scopes)))
    pairs = [(number, name) for names, number in scopes.items() for name in names or ()]
    return executions, numbers, [number for number, _ in pairs], [name for _, name in pairs]
