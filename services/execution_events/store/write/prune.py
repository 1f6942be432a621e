"""What nothing has changed for long, removed in small transactions.

Each of the functions yields after every transaction; whoever stops there leaves nothing half done.
With `dry_run` they count what they would remove and remove nothing. All raise `RetryableError`
where PostgreSQL is away, and `HaltError`, also where the role may not delete.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg

from execution_events.store.connection import translated_errors
from execution_events.store.sql import load_queries

_SQL = load_queries("prune")

SOURCE_IDLE = timedelta(days=60)
"""For how long a source sends nothing before its watermark is forgotten."""

_PAGE = 1000
"""Rows that one statement looks at."""
_BATCH_EXECUTIONS = 100
_BATCH_EVENTS = 10_000
"""Where a transaction ends; an execution with more events is one of its own."""


class Step(NamedTuple):
    """What one transaction removed: rows of its kind, and `events` with them.

    `seen` rows were looked at.
    """

    seen: int
    removed: int
    events: int = 0


class _Execution(NamedTuple):
    execution_id: str
    namespace: str
    events: int


async def moment_before(connection: asyncpg.Connection, age: timedelta) -> datetime:
    """The moment `age` ago by the database's clock, which all times of change are by."""
    with translated_errors():
        moment: datetime = await connection.fetchval(_SQL["moment"], age)
    return moment


async def prune_executions(
    connection: asyncpg.Connection, before: datetime, *, dry_run: bool
) -> AsyncIterator[Step]:
    """Remove the executions last changed before `before`, each with its events or not at all.

    An execution is that of one namespace. One that changes meanwhile is kept; a record that comes
    after its removal begins it anew. A writer of an execution waits while its batch is removed.
    """
    after = ("", "")
    while True:
        with translated_errors():
            page = await connection.fetch(_SQL["execution_page"], *after, before, _PAGE)
        old = [_Execution(*row[:3]) for row in page if row["is_old"]]
        if dry_run:
            yield Step(len(page), len(old), sum(execution.events for execution in old))
        else:
            for batch in _batches(old):
                yield await _remove(connection, batch, before)
            yield Step(len(page) - len(old), 0)
        if len(page) < _PAGE:
            return
        after = page[-1]["execution_id"], page[-1]["namespace"]


async def prune_sources(
    connection: asyncpg.Connection, before: datetime, *, dry_run: bool
) -> AsyncIterator[Step]:
    """Forget the watermarks that last moved before `before`."""
    async for step in _prune(connection, "idle_sources", before, dry_run=dry_run):
        yield step


async def prune_dead_letters(
    connection: asyncpg.Connection, before: datetime, *, dry_run: bool
) -> AsyncIterator[Step]:
    """Remove the dead letters that were retried or discarded before `before`."""
    async for step in _prune(connection, "closed_dead_letters", before, dry_run=dry_run):
        yield step


def _batches(executions: Sequence[_Execution]) -> Iterator[list[_Execution]]:
    batch: list[_Execution] = []
    events = 0
    for execution in executions:
        if batch and (len(batch) == _BATCH_EXECUTIONS or events + execution.events > _BATCH_EVENTS):
            yield batch
            batch, events = [], 0
        batch.append(execution)
        events += execution.events
    if batch:
        yield batch


async def _remove(
    connection: asyncpg.Connection, batch: Sequence[_Execution], before: datetime
) -> Step:
    with translated_errors():
        async with connection.transaction():
            locked = await connection.fetch(
                _SQL["lock_old_executions"],
                [execution.execution_id for execution in batch],
                [execution.namespace for execution in batch],
                before,
            )
            keys = [[row[column] for row in locked] for column in ("execution_id", "namespace")]
            events = await connection.fetchval(_SQL["delete_events"], *keys)
            await connection.execute(_SQL["delete_changes"], *keys)
            await connection.execute(_SQL["delete_executions"], *keys)
    return Step(len(batch), len(locked), events)


async def _prune(
    connection: asyncpg.Connection, rows: str, before: datetime, *, dry_run: bool
) -> AsyncIterator[Step]:
    if dry_run:
        with translated_errors():
            number = await connection.fetchval(_SQL[f"count_{rows}"], before)
        yield Step(number, number)
        return
    removed = _PAGE
    while removed == _PAGE:
        with translated_errors():
            removed = await connection.fetchval(_SQL[f"delete_{rows}"], before, _PAGE)
        yield Step(removed, removed)
