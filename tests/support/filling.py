"""Executions of many events, written faster than through batches."""

from collections.abc import Iterable

import asyncpg

from execution_events.events import Occurrence
from execution_events.projection.fold import first_objects, fold
from execution_events.store.write.events import prepare, write_events
from execution_events.store.write.known import KnownExecutions
from tests.support.records import occurrence

_MESSAGE = "元素(job)开始. ## Element(job) starts. " * 6


async def fill(owner: asyncpg.Connection, events: int) -> None:
    """Store `execution-1` with so many events; the count of each is its position, from 1."""
    await write(
        owner,
        (
            occurrence(name=f"object.{number:06}", message=_MESSAGE, count=number)
            for number in range(1, events + 1)
        ),
    )


async def write(owner: asyncpg.Connection, occurrences: Iterable[Occurrence]) -> None:
    """Store occurrences in one transaction."""
    await owner.execute("SET search_path = execution_events")
    await prepare(owner)
    log = list(occurrences)
    async with owner.transaction():
        events = [event for _, event in sorted(fold(log).items())]
        await write_events(owner, events, first_objects(log), KnownExecutions())
    await owner.reset_type_codec("timestamptz", schema="pg_catalog")
