"""States of actions and elements, written to the tables `action` and `element`."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any
from zlib import crc32

import asyncpg

from execution_events.events import Occurrence
from execution_events.projection.fold import FoldedEvent
from execution_events.projection.states import (
    STATES,
    Action,
    ActionChange,
    ActionKey,
    ElementKey,
    EventChange,
    ExecutionDelta,
    Tally,
    action_changes,
    action_key,
    advance,
    apply_to_elements,
    changed_elements,
    recompute,
)
from execution_events.store.sql import load_queries, number_arguments
from execution_events.store.write.rows import stored_event

_SQL = load_queries("states")

_STATE_COLUMNS = (
    "last_seen",
    "last_event",
    "state",
    "decided_at",
    "decided_by",
    "started",
    "attempts",
    "retries",
    "warnings",
    "failure",
    "fingerprint",
)
"""Columns of `action` beside its key; the fields of `Action`, in its order."""

_ACTION_COLUMNS = (
    "execution_id",
    "namespace",
    "action_key",
    "object_name",
    "elem_type",
    "elem_id",
    "action_name",
    *_STATE_COLUMNS,
)
_ELEMENT_COLUMNS = ("execution_id", "namespace", "element_key", *STATES)
_CHANGE_ACTIONS, _CHANGE_ACTIONS_COLUMNS = number_arguments(_SQL["change_actions"])

Execution = tuple[str, str]
"""(execution id, namespace)"""


@lru_cache(maxsize=65536)
def digest(*texts: str) -> bytes:
    """Return the first 16 bytes of SHA-256 over `texts`, joined by NUL."""
    return sha256("\0".join(texts).encode()).digest()[:16]


def action_hash(latest: Occurrence) -> int:
    """Return the hash by which the events of an action are found."""
    return _hash(action_key(latest))


def _hash(key: ActionKey) -> int:
    execution = crc32(f"{key.execution_id}\0{key.namespace}".encode())
    return int.from_bytes(execution.to_bytes(4) + digest(*key[2:])[:4], signed=True)


async def write_states(
    connection: asyncpg.Connection,
    changes: Iterable[EventChange],
    known: Collection[Execution],
) -> Mapping[Execution, ExecutionDelta]:
    """Apply the changes of events to their actions and elements, in the caller's transaction.

    The events are written already, and their executions locked; `known` are those that have been
    stored before. Returns the change of each execution's counters.
    """
    of_actions = action_changes(changes)
    keys = of_actions.keys()
    stored = await _stored_actions(connection, [key for key in keys if key[:2] in known])
    events = await _events_of(connection, of_actions.rewritten)
    actions = {}
    for key in keys:
        before = stored.get(key)
        after = (
            recompute(events[key])
            if key in of_actions.rewritten
            else advance(before, of_actions.added[key])
        )
        actions[key] = ActionChange(before, after)
    elements = await _stored_elements(
        connection, [key for key in changed_elements(actions) if key[:2] in known]
    )
    tallies, deltas = apply_to_elements(actions, elements)
    await _write_actions(connection, actions)
    await _write_elements(connection, elements, tallies)
    return deltas


async def _stored_actions(
    connection: asyncpg.Connection, keys: Sequence[ActionKey]
) -> dict[ActionKey, Action]:
    if not keys:
        return {}
    rows = await connection.fetch(
        _SQL["stored_actions"],
        [key.execution_id for key in keys],
        [key.namespace for key in keys],
        [digest(*key[2:]) for key in keys],
    )
    return {keys[ordinal - 1]: Action(*columns) for ordinal, *columns in rows}


async def _events_of(
    connection: asyncpg.Connection, keys: Collection[ActionKey]
) -> dict[ActionKey, list[FoldedEvent]]:
    events: dict[ActionKey, list[FoldedEvent]] = {key: [] for key in keys}
    if keys:
        hashes = {_hash(key) for key in keys}
        for row in await connection.fetch(_SQL["events_of_actions"], list(hashes)):
            event = stored_event(*row)
            of_action = events.get(action_key(event.latest))
            if of_action is not None:
                of_action.append(event)
    return events


async def _stored_elements(
    connection: asyncpg.Connection, keys: Sequence[ElementKey]
) -> dict[ElementKey, Tally]:
    if not keys:
        return {}
    rows = await connection.fetch(
        _SQL["stored_elements"],
        [key.execution_id for key in keys],
        [key.namespace for key in keys],
        [digest(*key[2:]) for key in keys],
    )
    return {
        keys[ordinal - 1]: dict(zip(STATES, numbers, strict=True)) for ordinal, *numbers in rows
    }


async def _write_actions(
    connection: asyncpg.Connection, actions: Mapping[ActionKey, ActionChange]
) -> None:
    new, changed, gone = [], [], []
    for key, (before, after) in actions.items():
        execution_id, namespace, object_name, elem_type, elem_id, action_name = key
        digested = digest(object_name, elem_type, elem_id, action_name)
        if after is None:
            gone.append((execution_id, namespace, digested))
        elif before is None:
            new.append(
                (
                    execution_id,
                    namespace,
                    digested,
                    object_name,
                    elem_type,
                    elem_id,
                    action_name,
                    *_state_row(after),
                )
            )
        else:
            changed.append((execution_id, namespace, digested, *_state_row(after)))
    if new:
        await connection.copy_records_to_table(
            "action", schema_name="execution_events", columns=_ACTION_COLUMNS, records=new
        )
    if changed:
        names = ("execution_id", "namespace", "action_key", *_STATE_COLUMNS)
        columns = dict(zip(names, zip(*changed, strict=True), strict=True))
        await connection.execute(
            _CHANGE_ACTIONS, *(columns[column] for column in _CHANGE_ACTIONS_COLUMNS)
        )
    if gone:
        await connection.execute(_SQL["delete_actions"], *zip(*gone, strict=True))


def _state_row(action: Action) -> tuple[Any, ...]:
    return (
        action.last_seen,
        action.last_event,
        action.state,
        action.decided_at,
        action.decided_by,
        action.started,
        action.attempts,
        action.retries,
        action.warnings,
        action.failure,
        action.fingerprint,
    )


async def _write_elements(
    connection: asyncpg.Connection,
    stored: Mapping[ElementKey, Tally],
    tallies: Mapping[ElementKey, Tally],
) -> None:
    new, changed, gone = [], [], []
    for key, tally in tallies.items():
        identity = (key.execution_id, key.namespace, digest(*key[2:]))
        row = (*identity, *(tally.get(state, 0) for state in STATES))
        if not any(tally.values()):
            gone.append(identity)
        elif key in stored:
            changed.append(row)
        else:
            new.append(row)
    if new:
        await connection.copy_records_to_table(
            "element", schema_name="execution_events", columns=_ELEMENT_COLUMNS, records=new
        )
    if changed:
        await connection.execute(_SQL["change_elements"], *zip(*changed, strict=True))
    if gone:
        await connection.execute(_SQL["delete_elements"], *zip(*gone, strict=True))
