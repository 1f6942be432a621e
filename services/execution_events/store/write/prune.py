"""Deletion of old executions, watermarks and dead letters, in small transactions.

The functions yield their progress after each transaction; the caller may stop there. With `dry_run`
they count rows and delete nothing. They raise `RetryableError` if PostgreSQL is unavailable and
`HaltError` for other errors, such as a role without the DELETE privilege.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg

from execution_events.store.connection import translated_errors
from execution_events.store.sql import load_queries

_SQL = load_queries("prune")

SOURCE_RETENTION = timedelta(days=60)
"""Age at which the watermark of an idle source is deleted."""

_PAGE = 1000
"""Rows scanned by one statement."""
_BATCH_EXECUTIONS = 100
_BATCH_EVENTS = 10_000
"""Limits of one transaction; an execution with more events has a transaction of its own."""


class PruneProgress(NamedTuple):
    """Rows scanned and deleted by one transaction, and `events` deleted with executions."""

    scanned: int
    deleted: int
    events: int = 0


class _Execution(NamedTuple):
    execution_id: str
    namespace: str
    events: int


async def time_before(connection: asyncpg.Connection, age: timedelta) -> datetime:
    """Return the time `age` ago by the database's clock, like all times of change."""
    with translated_errors():
        time: datetime = await connection.fetchval(_SQL["time_before"], age)
    return time


async def prune_executions(
    connection: asyncpg.Connection, before: datetime, *, dry_run: bool
) -> AsyncIterator[PruneProgress]:
    """Delete executions (of one namespace each) last changed before `before`, with their events.

    An execution that changes meanwhile is kept; a record that arrives after the deletion
    starts it again. Writers of an execution wait while its batch is deleted.
    """
    after = ("", "")
    while True:
        with translated_errors():
            page = await connection.fetch(_SQL["execution_page"], *after, before, _PAGE)
        old = [_Execution(*row[:3]) for row in page if row["is_old"]]
        if dry_run:
            yield PruneProgress(len(page), len(old), sum(execution.events for execution in old))
        else:
            for batch in _batches(old):
                yield await _delete_batch(connection, batch, before)
            yield PruneProgress(len(page) - len(old), 0)
        if len(page) < _PAGE:
            return
        after = page[-1]["execution_id"], page[-1]["namespace"]


async def prune_sources(
    connection: asyncpg.Connection, before: datetime, *, dry_run: bool
) -> AsyncIterator[PruneProgress]:
    """Delete watermarks that last moved before `before`."""
    async for progress in _prune(connection, "idle_sources", before, dry_run=dry_run):
        yield progress


async def prune_dead_letters(
    connection: asyncpg.Connection, before: datetime, *, dry_run: bool
) -> AsyncIterator[PruneProgress]:
    """Delete dead letters that were retried or discarded before `before`."""
    async for progress in _prune(connection, "closed_dead_letters", before, dry_run=dry_run):
        yield progress


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


async def _delete_batch(
    connection: asyncpg.Connection, batch: Sequence[_Execution], before: datetime
) -> PruneProgress:
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
            for table in ("actions", "changes", "executions"):
                await connection.execute(_SQL[f"delete_{table}"], *keys)
    return PruneProgress(len(batch), len(locked), events)


async def _prune(
    connection: asyncpg.Connection, rows: str, before: datetime, *, dry_run: bool
) -> AsyncIterator[PruneProgress]:
    if dry_run:
        with translated_errors():
            counted = await connection.fetchval(_SQL[f"count_{rows}"], before)
        yield PruneProgress(counted, counted)
        return
    deleted = _PAGE
    while deleted == _PAGE:
        with translated_errors():
            deleted = await connection.fetchval(_SQL[f"delete_{rows}"], before, _PAGE)
        yield PruneProgress(deleted, deleted)
