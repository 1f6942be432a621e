"""The revisions of executions, as many ask for them at once."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import asyncpg

from execution_events.errors import ExecutionEventsError
from execution_events.store.database import CONNECT_TIMEOUT, translated_errors
from execution_events.store.sql import load_queries

_SQL = load_queries("listing")

Namespaces = frozenset[str] | None
"""What a caller may read; None is all."""


class Asked(NamedTuple):
    """An execution, and what of it the caller may read."""

    execution_id: str
    namespaces: Namespaces


class Revisions:
    """What the revisions of executions are now: one statement for all who wait when it is sent.

    Nobody joins a statement that was sent: its snapshot may be older than what its caller has seen.
    For use in one event loop.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._waiting: list[tuple[Asked, asyncio.Future[str]]] = []
        self._answering: asyncio.Task[None] | None = None

    async def now(self, execution_id: str, namespaces: Namespaces) -> str:
        """The revisions of what a caller may read of an execution; empty where that is nothing.

        Raises `RetryableError` where PostgreSQL is away or too slow.
        """
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((Asked(execution_id, namespaces), answer))
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
                    found = await current_revisions(self._pool, asked)
                except ExecutionEventsError as error:
                    for _, answer in waiting:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                revisions = dict(zip(asked, found, strict=True))
                for one, answer in waiting:
                    if not answer.done():
                        answer.set_result(revisions[one])
        finally:
            self._answering = None


async def current_revisions(pool: asyncpg.Pool, asked: Sequence[Asked]) -> list[str]:
    """The revisions of each of `asked`, of one snapshot."""
    with translated_errors():
        async with pool.acquire(timeout=CONNECT_TIMEOUT) as connection:
            rows = await connection.fetch(_SQL["current_revisions"], *scoped(asked))
    found = [""] * len(asked)
    for number, revisions in rows:
        found[number - 1] = revisions
    return found


def scoped(asked: Iterable[Asked]) -> tuple[list[object], ...]:
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
