"""The revisions of executions and the changes between them, read for many callers at once."""

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
"""The namespaces that a caller may read; None is all."""
Revisions = Mapping[str, int]
"""An execution's revisions by namespace, of the namespaces that a caller may read."""

CHANGES_LIMIT = 20_000
"""Maximum changes of events in one delta, which is held in memory: two of the largest batches. A
caller that has missed more reads the list again."""

_decoder = msgspec.json.Decoder(dict[str, int])


class ExecutionScope(NamedTuple):
    """An execution and the namespaces that a caller may read."""

    execution_id: str
    namespaces: Namespaces


class Change(msgspec.Struct, frozen=True, gc=False):
    """An event in its state after it was last added or changed, at its namespace's `revision`.

    `is_rewritten`: a text that filters match has changed.
    """

    namespace: str
    revision: int
    is_rewritten: bool
    first_timestamp: datetime
    last_timestamp: datetime
    body: bytes
    event: Body


class RevisionDelta(NamedTuple):
    """The changes from one set of revisions to the next, in order of revision.

    If it is not complete, changes were deleted or exceed `CHANGES_LIMIT`, or the execution was
    pruned: the caller must read the whole list.
    """

    before: Revisions
    after: Revisions
    changes: Sequence[Change]
    is_complete: bool = True


def parse_revisions(text: str) -> Revisions:
    """Parse revisions from the store's text."""
    return _decoder.decode(text) if text else {}


class CurrentRevisions:
    """The current revisions of executions; callers that wait at the same time share one query.

    A caller never joins a query that was already sent: its snapshot may be older than the caller's
    last answer. For use in one event loop.
    """

    def __init__(self, pool: ReadingPool) -> None:
        self._pool = pool
        self._waiting: list[tuple[ExecutionScope, asyncio.Future[str]]] = []
        self._answering: asyncio.Task[None] | None = None

    async def of(self, scope: ExecutionScope) -> str:
        """Return the current revisions as text; equal revisions give equal text.

        The text is empty if the caller may read nothing. Raises `RetryableError` if PostgreSQL is
        unavailable or too slow.
        """
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((scope, answer))
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer())
        return await answer

    async def _answer(self) -> None:
        try:
            while waiting := self._waiting:
                self._waiting = []
                scopes = list({scope for scope, _ in waiting})
                try:
                    revisions = await current_revisions(self._pool, scopes)
                except Exception as error:
                    for _, answer in waiting:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                by_scope = dict(zip(scopes, revisions, strict=True))
                for scope, answer in waiting:
                    if not answer.done():
                        answer.set_result(by_scope[scope])
        finally:
            self._answering = None


async def current_revisions(pool: ReadingPool, scopes: Sequence[ExecutionScope]) -> list[str]:
    """Return the current revisions of each scope, from one snapshot."""
    with translated_errors():
        async with pool.acquire() as connection:
            rows = await connection.fetch(_SQL["current_revisions"], *_columns(scopes))
    current = [""] * len(scopes)
    for ordinal, revisions in rows:
        current[ordinal - 1] = revisions
    return current


async def deltas_since(
    pool: ReadingPool, known: Sequence[tuple[ExecutionScope, Revisions]]
) -> list[RevisionDelta]:
    """Return the changes from each of the `known` revisions to the current ones."""
    texts = await current_revisions(pool, [scope for scope, _ in known])
    current = [parse_revisions(text) for text in texts]
    moved = [
        (index, namespace, before.get(namespace, 0))
        for index, ((_, before), now) in enumerate(zip(known, current, strict=True))
        for namespace, revision in now.items()
        if revision != before.get(namespace)
    ]
    since = [(known[index][0].execution_id, *rest) for index, *rest in moved]
    after = [dict(now) for now in current]
    changes: dict[int, list[Change]] = defaultdict(list)
    # A namespace without a row was pruned.
    complete = [
        before.keys() <= now.keys() for (_, before), now in zip(known, current, strict=True)
    ]
    chains = await _chains(pool, since)
    for (index, namespace, _), chain in zip(moved, chains, strict=True):
        after[index][namespace] = max(chain.latest, after[index][namespace])
        changes[index] += chain.changes
        complete[index] &= chain.is_complete
    return [
        RevisionDelta(before, after[index], changes[index], complete[index])
        for index, (_, before) in enumerate(known)
    ]


class _Chain(NamedTuple):
    """The changes of a namespace from a known revision up to `latest`."""

    latest: int
    is_complete: bool
    changes: list[Change]


async def _chains(pool: ReadingPool, since: Sequence[tuple[object, ...]]) -> list[_Chain]:
    """Return the chain from each (execution id, namespace, revision)."""
    chains = [_Chain(0, False, []) for _ in since]
    if since:
        with translated_errors():
            async with pool.acquire() as connection:
                rows = await connection.fetch(
                    _SQL["changes"], *zip(*since, strict=True), CHANGES_LIMIT
                )
        for ordinal, latest, revision, rewritten, first, last, body in rows:
            changes = chains[ordinal - 1].changes
            event = decode(body)
            changes.append(
                Change(event.metadata.namespace, revision, rewritten, first, last, body, event)
            )
            chains[ordinal - 1] = _Chain(latest, True, changes)
    return chains


def _columns(scopes: Iterable[ExecutionScope]) -> tuple[list[object], ...]:
    """Return execution ids and indexes of namespace sets; then these indexes with their namespaces.

    Most callers may read the same namespaces, so each set is sent once.
    """
    indexes: dict[Namespaces, int] = {}
    execution_ids: list[object] = []
    references: list[object] = []
    for execution_id, namespaces in scopes:
        execution_ids.append(execution_id)
        references.append(
            None if namespaces is None else indexes.setdefault(namespaces, len(indexes))
        )
    pairs = [(index, name) for names, index in indexes.items() for name in names or ()]
    return execution_ids, references, [index for index, _ in pairs], [name for _, name in pairs]
