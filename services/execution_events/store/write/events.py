"""Folded events into the tables `event`, `execution` and `execution_change`."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec

from execution_events.events import COUNT_MAX, Occurrence
from execution_events.projection.body import body_of, decode
from execution_events.projection.fold import FoldedEvent, merge
from execution_events.store.sql import load_queries

_SQL = load_queries("events")

_POSTGRESQL_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_EVENT_COLUMNS = (
    "execution_id",
    "namespace",
    "name",
    "first_timestamp",
    "last_timestamp",
    "count",
    "object_name",
    "reason",
    "type",
    "elem_type",
    "elem_id",
    "action_name",
    "body",
    # It never changes, so it comes after those that `change_events` takes.
    "place",
)
_CHANGE_COLUMNS = ("execution_id", "namespace", "revision", "previous", "names", "rewritten")


class _Execution(msgspec.Struct):
    """What a transaction adds to the events of one execution and namespace."""

    execution_id: str
    namespace: str
    events: list[FoldedEvent]
    occurrences: int
    first_timestamp: datetime
    last_timestamp: datetime
    revision: int = 0
    previous: int | None = None
    changed: dict[str, FoldedEvent] = {}
    """What becomes of those of `events` that were there before, by name."""
    rewritten: set[str] = set()
    """Those of `changed` whose texts are others than before."""


async def prepare(connection: asyncpg.Connection) -> None:
    """What `write_events` needs, once for each connection."""
    # asyncpg's own codec stores the last microsecond of the year 9999 as infinity.
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        format="tuple",
        encoder=lambda moment: ((moment - _POSTGRESQL_EPOCH) // _MICROSECOND,),
        decoder=lambda value: _POSTGRESQL_EPOCH + value[0] * _MICROSECOND,
    )


async def write_events(connection: asyncpg.Connection, events: Sequence[FoldedEvent]) -> None:
    """Apply `events`, sorted by identity and each once, within the caller's transaction.

    Each execution is locked first; then what is stored of its events is read, merged with what
    comes, and written. An event that is new costs a row of a COPY, which is much cheaper than an
    INSERT that may meet a conflict.
    """
    if not events:
        return
    executions = _by_execution(events)
    await _raise_executions(connection, executions)
    # An execution that was not there had no events.
    known = [
        event
        for execution in executions.values()
        if execution.previous is not None
        for event in execution.events
    ]
    changed = []
    for number, stored in await _stored(connection, known):
        event = known[number].latest
        merged = merge(stored, known[number])
        changed.append(merged)
        execution = executions[event.execution_id, event.namespace]
        execution.changed[event.name] = merged
        if _texts(merged.latest) != _texts(stored.latest):
            execution.rewritten.add(event.name)
    await connection.copy_records_to_table(
        "event",
        columns=_EVENT_COLUMNS,
        records=[
            _row(event)
            for execution in executions.values()
            for event in execution.events
            if event.latest.name not in execution.changed
        ],
    )
    if changed:
        *columns, _ = zip(*map(_row, changed), strict=True)
        await connection.execute(_SQL["change_events"], *columns)
    await _record_changes(connection, executions.values())


def _by_execution(events: Iterable[FoldedEvent]) -> dict[tuple[str, str], _Execution]:
    executions: dict[tuple[str, str], _Execution] = {}
    for event in events:
        latest = event.latest
        first, last = event.first_timestamp, latest.last_timestamp
        key = (latest.execution_id, latest.namespace)
        execution = executions.get(key)
        if execution is None:
            executions[key] = _Execution(*key, [event], event.count, first, last)
            continue
        execution.events.append(event)
        execution.occurrences += event.count
        if first < execution.first_timestamp:
            execution.first_timestamp = first
        if last > execution.last_timestamp:
            execution.last_timestamp = last
    return executions


async def _raise_executions(
    connection: asyncpg.Connection, executions: dict[tuple[str, str], _Execution]
) -> None:
    """Lock the rows, with a new revision."""
    raised = executions.values()
    rows = await connection.fetch(
        _SQL["raise_executions"],
        [execution.execution_id for execution in raised],
        [execution.namespace for execution in raised],
        [min(execution.occurrences, COUNT_MAX) for execution in raised],
        [execution.first_timestamp for execution in raised],
        [execution.last_timestamp for execution in raised],
    )
    for execution_id, namespace, revision, previous in rows:
        execution = executions[execution_id, namespace]
        execution.revision, execution.previous = revision, previous


async def _stored(
    connection: asyncpg.Connection, events: Sequence[FoldedEvent]
) -> list[tuple[int, FoldedEvent]]:
    """What is stored of those of `events` that are, each with its number among them."""
    if not events:
        return []
    rows = await connection.fetch(
        _SQL["stored_events"],
        [event.latest.execution_id for event in events],
        [event.latest.namespace for event in events],
        [event.latest.name for event in events],
    )
    return [
        (number - 1, _event(events[number - 1].latest.execution_id, *columns))
        for number, *columns in rows
    ]


def _event(
    execution_id: str, place: datetime, first: datetime, last: datetime, count: int, body: bytes
) -> FoldedEvent:
    content = decode(body)
    latest = Occurrence(
        execution_id=execution_id,
        namespace=content.metadata.namespace,
        name=content.metadata.name,
        object_name=content.involved_object.name,
        object_namespace=content.involved_object.namespace,
        reason=content.reason,
        message=content.message,
        first_timestamp=first,
        last_timestamp=last,
        count=count,
        type=content.type,
        elem_type=content.elem_type,
        elem_id=content.elem_id,
        action_name=content.action_name,
    )
    return FoldedEvent(latest, count, first, place)


def _texts(occurrence: Occurrence) -> tuple[str, ...]:
    """What a filter can select by, times aside."""
    return (
        occurrence.reason,
        occurrence.message,
        occurrence.type,
        occurrence.elem_type,
        occurrence.elem_id,
        occurrence.action_name,
    )


async def _record_changes(connection: asyncpg.Connection, executions: Iterable[_Execution]) -> None:
    await connection.copy_records_to_table(
        "execution_change",
        columns=_CHANGE_COLUMNS,
        records=[
            (
                execution.execution_id,
                execution.namespace,
                execution.revision,
                execution.previous,
                (names := [event.latest.name for event in execution.events]),
                # Mostly none is, and the row is half as long so.
                [name in execution.rewritten for name in names] if execution.rewritten else [],
            )
            for execution in executions
        ],
    )
    grown = [e for e in executions if len(e.events) > len(e.changed)]
    if grown:
        await connection.execute(
            _SQL["count_events"],
            [execution.execution_id for execution in grown],
            [execution.namespace for execution in grown],
            [len(execution.events) - len(execution.changed) for execution in grown],
        )


def _row(event: FoldedEvent) -> tuple[object, ...]:
    latest = event.latest
    return (
        latest.execution_id,
        latest.namespace,
        latest.name,
        event.first_timestamp,
        latest.last_timestamp,
        event.count,
        latest.object_name,
        latest.reason,
        latest.type,
        latest.elem_type,
        latest.elem_id,
        latest.action_name,
        body_of(event),
        event.place,
    )
