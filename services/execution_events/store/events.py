"""Folded events into the tables `event` and `execution`: the fold in SQL."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import asyncpg

from execution_events.projection.fold import FoldedEvent
from execution_events.store.sql import load_queries

_SQL = load_queries("events")

_POSTGRESQL_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_EVENT_COLUMNS = (
    "execution_id",
    "namespace",
    "name",
    "object_name",
    "object_namespace",
    "reason",
    "message",
    "place",
    "first_timestamp",
    "last_timestamp",
    "count",
    "type",
    "elem_type",
    "elem_id",
    "action_name",
)


async def prepare(connection: asyncpg.Connection) -> None:
    """What `write_events` needs, once for each connection."""
    await connection.execute(_SQL["create_batch_event"])
    # asyncpg's own codec stores the last microsecond of the year 9999 as infinity.
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        format="tuple",
        encoder=lambda moment: ((moment - _POSTGRESQL_EPOCH) // _MICROSECOND,),
        decoder=lambda value: _POSTGRESQL_EPOCH + value[0] * _MICROSECOND,
    )


async def write_events(connection: asyncpg.Connection, events: Sequence[FoldedEvent]) -> None:
    """Apply `events`, sorted by identity and each once, within the caller's transaction."""
    if not events:
        return
    await connection.copy_records_to_table(
        "batch_event", columns=_EVENT_COLUMNS, records=[_row(event) for event in events]
    )
    await connection.execute(_SQL["upsert_executions"])
    await connection.execute(_SQL["upsert_events"])


def _row(event: FoldedEvent) -> tuple[object, ...]:
    latest = event.latest
    return (
        latest.execution_id,
        latest.namespace,
        latest.name,
        latest.object_name,
        latest.object_namespace,
        latest.reason,
        latest.message,
        event.place,
        event.first_timestamp,
        latest.last_timestamp,
        event.count,
        latest.type,
        latest.elem_type,
        latest.elem_id,
        latest.action_name,
    )
