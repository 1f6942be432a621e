"""Folded events, written to the tables `event`, `execution` and `execution_change`."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from execution_events.events import COUNT_MAX, Occurrence
from execution_events.projection.body import body_of
from execution_events.projection.fold import FoldedEvent, merge
from execution_events.projection.states import (
    ElementKey,
    Execution,
    element_key,
    events_by_action,
)
from execution_events.store.sql import array_literal, load_queries, number_arguments
from execution_events.store.write.rows import EVENT_COLUMNS, event_row, stored_event
from execution_events.store.write.states import (
    NO_DELTA,
    ExecutionDelta,
    element_hashes,
    write_states,
)

_SQL = load_queries("events")

_POSTGRESQL_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PURGE_BATCH = 10_000
"""Changes deleted by one statement, in some 50 ms."""

_CHANGE_COUNTERS = load_queries("states")["change_counters"]
_CHANGE_EVENTS, _CHANGE_EVENTS_COLUMNS = number_arguments(_SQL["change_events"])
_CHANGE_COLUMNS = ("execution_id", "namespace", "revision", "previous", "names", "rewritten")


class _ExecutionUpdate(msgspec.Struct):
    """The events that a transaction adds to one execution and namespace."""

    execution_id: str
    namespace: str
    events: list[FoldedEvent]
    occurrences: int
    first_timestamp: datetime
    last_timestamp: datetime
    revision: int = 0
    previous: int | None = None
    merged: dict[str, FoldedEvent] = {}
    """The new state of each of `events` that is stored already, by name."""
    rewritten: set[str] = set()
    """The names of merged events whose texts change."""


async def prepare(connection: asyncpg.Connection) -> None:
    """Prepare a new connection for `write_events`."""
    last, encoded = _POSTGRESQL_EPOCH, (0,)

    def encode(moment: datetime) -> tuple[int]:
        # A row often has one moment in several columns.
        nonlocal last, encoded
        if moment is not last:
            last, encoded = moment, ((moment - _POSTGRESQL_EPOCH) // _MICROSECOND,)
        return encoded

    # asyncpg's own codec encodes the last microsecond of the year 9999 as infinity.
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        format="tuple",
        encoder=encode,
        decoder=lambda value: _POSTGRESQL_EPOCH + value[0] * _MICROSECOND,
    )


async def write_events(
    connection: asyncpg.Connection,
    events: Sequence[FoldedEvent],
    objects: Mapping[tuple[str, str], str],
) -> None:
    """Apply distinct `events`, sorted by identity, in the caller's transaction.

    Locks each execution, then reads the stored events, merges and writes them. New events go into
    one COPY, which is much cheaper than an INSERT with ON CONFLICT.
    """
    if not events:
        return
    updates = _by_execution(events)
    await _raise_executions(connection, updates, objects)
    # A new execution has no stored events.
    candidates = [
        event
        for update in updates.values()
        if update.previous is not None
        for event in update.events
    ]
    changed = []
    for event, stored in await _stored(connection, candidates):
        merged = merge(stored, event)
        changed.append((stored, merged))
        update = updates[event.latest.execution_id, event.latest.namespace]
        update.merged[event.latest.name] = merged
        if _filtered_texts(merged.latest) != _filtered_texts(stored.latest):
            update.rewritten.add(event.latest.name)
    new = [
        event
        for update in updates.values()
        for event in update.events
        if event.latest.name not in update.merged
    ]
    of_actions = events_by_action(new, changed)
    hashes = element_hashes(of_actions.keys())
    await connection.copy_records_to_table(
        "event",
        schema_name="execution_events",
        columns=EVENT_COLUMNS,
        records=_rows(new, hashes),
    )
    if changed:
        rows = _rows((merged for _, merged in changed), hashes)
        columns = dict(zip(EVENT_COLUMNS, zip(*rows, strict=True), strict=True))
        await connection.execute(
            _CHANGE_EVENTS, *(columns[column] for column in _CHANGE_EVENTS_COLUMNS)
        )
    known = {key for key, update in updates.items() if update.previous is not None}
    deltas = await write_states(connection, of_actions, hashes, known)
    await _record_changes(connection, updates.values())
    await _change_counters(connection, updates, deltas)


async def purge_changes(connection: asyncpg.Connection, retention: timedelta) -> bool:
    """Delete a batch of changes older than `retention`; return whether more are left."""
    deleted = await connection.fetchval(_SQL["purge_changes"], retention, _PURGE_BATCH)
    return bool(deleted == _PURGE_BATCH)


def _by_execution(events: Iterable[FoldedEvent]) -> dict[tuple[str, str], _ExecutionUpdate]:
    updates: dict[tuple[str, str], _ExecutionUpdate] = {}
    for event in events:
        latest = event.latest
        first, last = event.first_timestamp, latest.last_timestamp
        key = (latest.execution_id, latest.namespace)
        update = updates.get(key)
        if update is None:
            updates[key] = _ExecutionUpdate(*key, [event], event.count, first, last)
            continue
        update.events.append(event)
        update.occurrences += event.count
        if first < update.first_timestamp:
            update.first_timestamp = first
        if last > update.last_timestamp:
            update.last_timestamp = last
    return updates


async def _raise_executions(
    connection: asyncpg.Connection,
    updates: dict[tuple[str, str], _ExecutionUpdate],
    objects: Mapping[tuple[str, str], str],
) -> None:
    """Lock the rows of the executions and raise their revisions."""
    raised = updates.values()
    rows = await connection.fetch(
        _SQL["raise_executions"],
        [update.execution_id for update in raised],
        [update.namespace for update in raised],
        [objects[key] for key in updates],
        [min(update.occurrences, COUNT_MAX) for update in raised],
        [update.first_timestamp for update in raised],
        [update.last_timestamp for update in raised],
    )
    for execution_id, namespace, revision, previous in rows:
        update = updates[execution_id, namespace]
        update.revision, update.previous = revision, previous


async def _stored(
    connection: asyncpg.Connection, events: Sequence[FoldedEvent]
) -> list[tuple[FoldedEvent, FoldedEvent]]:
    """Return each of `events` that is stored, with its stored state."""
    if not events:
        return []
    rows = await connection.fetch(
        _SQL["stored_events"],
        array_literal([event.latest.execution_id for event in events]),
        array_literal([event.latest.namespace for event in events]),
        array_literal([event.latest.name for event in events]),
    )
    return [
        (event := events[ordinal - 1], stored_event(event.latest.execution_id, *columns))
        for ordinal, *columns in rows
    ]


def _rows(events: Iterable[FoldedEvent], hashes: Mapping[ElementKey, int]) -> list[tuple[Any, ...]]:
    return [event_row(event, body_of(event), hashes[element_key(event.latest)]) for event in events]


def _filtered_texts(occurrence: Occurrence) -> tuple[str, ...]:
    """Return the texts that filters match."""
    return (
        occurrence.reason,
        occurrence.message,
        occurrence.type,
        occurrence.elem_type,
        occurrence.elem_id,
        occurrence.action_name,
    )


async def _record_changes(
    connection: asyncpg.Connection, updates: Iterable[_ExecutionUpdate]
) -> None:
    await connection.copy_records_to_table(
        "execution_change",
        schema_name="execution_events",
        columns=_CHANGE_COLUMNS,
        records=[
            (
                update.execution_id,
                update.namespace,
                update.revision,
                update.previous,
                (names := [event.latest.name for event in update.events]),
                # Empty if no event is rewritten, as in most rows: half the size.
                [name in update.rewritten for name in names] if update.rewritten else [],
            )
            for update in updates
        ],
    )


async def _change_counters(
    connection: asyncpg.Connection,
    updates: Mapping[Execution, _ExecutionUpdate],
    deltas: Mapping[Execution, ExecutionDelta],
) -> None:
    rows = []
    for key, update in updates.items():
        elements, warnings = deltas.get(key, NO_DELTA)
        events = len(update.events) - len(update.merged)
        if events or warnings or any(elements):
            # Unknown ones are the rest.
            rows.append((*key, events, sum(elements), *elements[:-1], warnings))
    if rows:
        await connection.execute(_CHANGE_COUNTERS, *zip(*rows, strict=True))
