"""Folded events, written to the tables `event`, `execution` and `execution_change`."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from execution_events.events import COUNT_MAX, Occurrence
from execution_events.projection.body import body_of
from execution_events.projection.fold import FoldedEvent, merge
from execution_events.projection.states import (
    STATES,
    ActionEvents,
    Actions,
    ElementKey,
    Execution,
    StateChanges,
    advance_all,
    element_key,
)
from execution_events.store.sql import array_literal, load_queries
from execution_events.store.write.known import KnownExecution, KnownExecutions
from execution_events.store.write.rows import EVENT_COLUMNS, event_row, stored_event
from execution_events.store.write.states import (
    ActionRows,
    action_rows,
    element_hashes,
    remaining_events,
    stored_elements,
    write_actions,
)

_SQL = load_queries("events")

_POSTGRESQL_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PURGE_BATCH = 10_000
"""Changes deleted by one statement, in some 50 ms."""

_CHANGE_COUNTERS = load_queries("states")["change_counters"]


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
    new: int = 0
    """The number of `events` that were not stored before."""
    rewritten: set[str] = set()
    """The names of the others whose texts change."""


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
    objects: Mapping[Execution, str],
    known: KnownExecutions,
) -> dict[Execution, KnownExecution]:
    """Apply distinct `events` in the caller's transaction.

    Locks the executions, in the order of all writers, reads the stored events and actions that are
    not known, merges and writes them. New rows go into one COPY, which is much cheaper than an
    INSERT with ON CONFLICT. Returns the executions for `known.put`, after the commit.
    """
    updates = _by_execution(events)
    if not updates:
        return {}
    await _raise_executions(connection, updates, objects)
    executions = {key: known.take(key, update.previous) for key, update in updates.items()}
    await _read_events(connection, updates, executions)
    states = ActionEvents()
    new, changed, rewritten = [], [], []
    for key, update in updates.items():
        execution = executions[key]
        stored_events = execution.events
        for event in update.events:
            name = event.latest.name
            stored = stored_events.get(name)
            if stored is None:
                # Not the event: few recur, and memory that is freed long after its last use is
                # no longer in the processor's cache.
                stored_events[name] = None
                execution.characters += len(event.latest.message)
                new.append((event, states.add(event)))
                update.new += 1
                continue
            merged = stored_events[name] = merge(stored, event)
            changed.append(merged)
            states.change(stored, merged)
            texts, texts_now = _texts(stored.latest), _texts(merged.latest)
            if texts != texts_now:
                rewritten.append(merged)
            if texts[1:] != texts_now[1:] or stored.latest.message != merged.latest.message:
                execution.characters += len(merged.latest.message) - len(stored.latest.message)
                update.rewritten.add(name)
    hashes = element_hashes(states.added)
    stored_actions = await _read_elements(connection, executions, hashes)
    remaining = await remaining_events(
        connection, states.rewritten, hashes, _current(updates, executions)
    )
    changes, actions = StateChanges(), ActionRows([], [], [])

    def rows() -> Iterator[tuple[Any, ...]]:
        nonlocal changes, actions
        for event, element in new:
            yield event_row(event, body_of(event), hashes[element])
        # Here, as PostgreSQL is still storing the rows that it has been sent.
        changes = advance_all(states, stored_actions, remaining)
        actions = action_rows(changes.actions)

    await connection.copy_records_to_table(
        "event", schema_name="execution_events", columns=EVENT_COLUMNS, records=rows()
    )
    await _change_events(connection, changed)
    await _rewrite_events(connection, rewritten, hashes)
    await write_actions(connection, actions)
    for element, its_actions in changes.elements.items():
        elements = executions[element[:2]].elements
        if its_actions:
            elements[element] = its_actions
        else:
            elements.pop(element, None)
    await _record_changes(connection, updates.values())
    await _change_counters(connection, updates, changes)
    for key, execution in executions.items():
        execution.revision = updates[key].revision
    return executions


async def _read_events(
    connection: asyncpg.Connection,
    updates: Mapping[Execution, _ExecutionUpdate],
    executions: Mapping[Execution, KnownExecution],
) -> None:
    """Read those of the batch's events that may be stored and are not in memory."""
    unread = []
    for key, update in updates.items():
        execution = executions[key]
        known = execution.events
        for event in update.events:
            name = event.latest.name
            if known.get(name) is None and (name in known or not execution.whole):
                unread.append(event)
    for event, stored in await _stored(connection, unread):
        latest = event.latest
        execution = executions[latest.execution_id, latest.namespace]
        if latest.name not in execution.events:
            execution.characters += len(stored.latest.message)
        execution.events[latest.name] = stored


def _current(
    updates: Mapping[Execution, _ExecutionUpdate], executions: Mapping[Execution, KnownExecution]
) -> Iterator[FoldedEvent]:
    """Yield the batch's events as they are now."""
    for key, update in updates.items():
        events = executions[key].events
        for event in update.events:
            # One that is not in memory is new.
            yield events[event.latest.name] or event


async def _read_elements(
    connection: asyncpg.Connection,
    executions: Mapping[Execution, KnownExecution],
    hashes: Mapping[ElementKey, int],
) -> dict[ElementKey, Actions]:
    """Return all actions of the elements; read what is not known."""
    elements: dict[ElementKey, Actions] = {}
    unknown = {}
    for element, hash_ in hashes.items():
        execution = executions[element[:2]]
        actions = execution.elements.get(element)
        if actions is not None:
            elements[element] = actions
        elif not execution.whole:
            unknown[element] = hash_
    return elements | await stored_elements(connection, unknown)


async def purge_changes(connection: asyncpg.Connection, retention: timedelta) -> bool:
    """Delete a batch of changes older than `retention`; return whether more are left."""
    deleted = await connection.fetchval(_SQL["purge_changes"], retention, _PURGE_BATCH)
    return bool(deleted == _PURGE_BATCH)


def _by_execution(events: Iterable[FoldedEvent]) -> dict[Execution, _ExecutionUpdate]:
    updates: dict[Execution, _ExecutionUpdate] = {}
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
    updates: Mapping[Execution, _ExecutionUpdate],
    objects: Mapping[Execution, str],
) -> None:
    """Lock the rows of the executions and raise their revisions."""
    raised = updates.values()
    rows = await connection.fetch(
        _SQL["raise_executions"],
        array_literal(update.execution_id for update in raised),
        array_literal(update.namespace for update in raised),
        array_literal(objects[key] for key in updates),
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
    rows = await connection.fetch(_SQL["stored_events"], *_identities(events))
    return [
        (event := events[ordinal - 1], stored_event(event.latest.execution_id, *columns))
        for ordinal, *columns in rows
    ]


async def _change_events(connection: asyncpg.Connection, events: Sequence[FoldedEvent]) -> None:
    if events:
        await connection.execute(
            _SQL["change_events"],
            *_identities(events),
            [event.first_timestamp for event in events],
            [event.latest.last_timestamp for event in events],
            [event.count for event in events],
            [body_of(event) for event in events],
        )


async def _rewrite_events(
    connection: asyncpg.Connection,
    events: Sequence[FoldedEvent],
    hashes: Mapping[ElementKey, int],
) -> None:
    if events:
        rows = [
            (*event.identity, *_texts(latest := event.latest), hashes[element_key(latest)])
            for event in events
        ]
        await connection.execute(_SQL["rewrite_events"], *zip(*rows, strict=True))


def _identities(events: Sequence[FoldedEvent]) -> tuple[str, str, str]:
    """Return the arrays of execution ids, namespaces and names."""
    return (
        array_literal([event.latest.execution_id for event in events]),
        array_literal([event.latest.namespace for event in events]),
        array_literal([event.latest.name for event in events]),
    )


def _texts(occurrence: Occurrence) -> tuple[str, ...]:
    """Return the texts that have columns; filters match all but the first, and the message."""
    return (
        occurrence.object_name,
        occurrence.reason,
        occurrence.type,
        occurrence.elem_type,
        occurrence.elem_id,
        occurrence.action_name,
    )


async def _record_changes(
    connection: asyncpg.Connection, updates: Collection[_ExecutionUpdate]
) -> None:
    await connection.execute(
        _SQL["insert_changes"],
        array_literal(update.execution_id for update in updates),
        array_literal(update.namespace for update in updates),
        [update.revision for update in updates],
        [update.previous for update in updates],
        [array_literal(event.latest.name for event in update.events) for update in updates],
        # Empty if no event is rewritten, as in most rows: half the size.
        [_flags(update) if update.rewritten else "{}" for update in updates],
    )


def _flags(update: _ExecutionUpdate) -> str:
    """Return PostgreSQL's literal of whether each event is rewritten."""
    flags = ("tf"[event.latest.name not in update.rewritten] for event in update.events)
    return f"{{{','.join(flags)}}}"


async def _change_counters(
    connection: asyncpg.Connection,
    updates: Mapping[Execution, _ExecutionUpdate],
    changes: StateChanges,
) -> None:
    rows = []
    for key, update in updates.items():
        tally, warnings = changes.tallies.get(key), changes.warnings.get(key, 0)
        if update.new or warnings or tally:
            tally = tally or [0] * len(STATES)
            # Unknown ones are the rest.
            rows.append((*key, update.new, sum(tally), *tally[:-1], warnings))
    if rows:
        await connection.execute(_CHANGE_COUNTERS, *zip(*rows, strict=True))
