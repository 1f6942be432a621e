"""States of actions, written to the table `action`."""

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

import asyncpg
from msgspec.structs import astuple

from execution_events.projection.fold import FoldedEvent
from execution_events.projection.states import (
    STATES,
    Action,
    ActionEvents,
    ActionKey,
    ElementKey,
    Execution,
    Tally,
    action_key,
    advance_all,
    element_deltas,
)
from execution_events.store.sql import load_queries, number_arguments
from execution_events.store.write.rows import stored_event

_SQL = load_queries("states")

_STATE_COLUMNS = Action.__struct_fields__
"""The columns of `action` beside its key and its texts."""
_ACTION_COLUMNS = (
    "execution_id",
    "namespace",
    "action_key",
    "object_name",
    "elem_type",
    "elem_id",
    "action_name",
    "element_hash",
    "kind",
    *_STATE_COLUMNS,
)
_CHANGED_COLUMNS = ("execution_id", "namespace", "action_key", *_STATE_COLUMNS)
_CHANGE_ACTIONS, _CHANGE_ACTIONS_COLUMNS = number_arguments(_SQL["change_actions"])


class ExecutionDelta(NamedTuple):
    """The change of an execution's elements in each of `STATES`, and of its warnings."""

    elements: Tally
    warnings: int


NO_DELTA = ExecutionDelta([0] * len(STATES), 0)


def _digest(*texts: str) -> bytes:
    return sha256("\0".join(texts).encode()).digest()[:16]


_kind = lru_cache(maxsize=4096)(_digest)
"""Returns the `kind` of an action, by its namespace, element type and name."""


def element_hashes(actions: Iterable[ActionKey]) -> dict[ElementKey, int]:
    """Return the `element_hash` of each element that any of `actions` is of."""
    executions: dict[Execution, int] = {}
    hashes = {}
    for key in {action[:5] for action in actions}:
        execution = executions.get(key[:2])
        if execution is None:
            execution = executions[key[:2]] = (_hash(key[:2]) << 32) - 2**63
        hashes[key] = execution + _hash(key[2:])
    return hashes


async def write_states(
    connection: asyncpg.Connection,
    events: ActionEvents,
    hashes: Mapping[ElementKey, int],
    known: Collection[Execution],
) -> dict[Execution, ExecutionDelta]:
    """Apply `events` to their actions, in the caller's transaction.

    They are written already, and their executions locked. `hashes` are those of their elements;
    `known` are the executions that were stored before. Returns the change of each execution's
    counters, unless there is none.
    """
    stored = await _stored_actions(
        connection, [hash_ for element, hash_ in hashes.items() if element[:2] in known]
    )
    remaining = await _events_of(connection, events.rewritten, hashes)
    changes = advance_all(events, stored, remaining)
    await _write_actions(connection, changes.actions, hashes)
    elements = element_deltas(changes.elements, stored)
    return {
        execution: ExecutionDelta(
            elements.get(execution, NO_DELTA.elements), changes.warnings.get(execution, 0)
        )
        for execution in elements.keys() | changes.warnings.keys()
    }


async def _stored_actions(
    connection: asyncpg.Connection, hashes: Iterable[int]
) -> dict[ActionKey, Action]:
    if not hashes:
        return {}
    rows = await connection.fetch(_SQL["stored_actions"], _array(hashes))
    return {tuple(row[:6]): Action(*row[6:]) for row in rows}


async def _events_of(
    connection: asyncpg.Connection, keys: Collection[ActionKey], hashes: Mapping[ElementKey, int]
) -> dict[ActionKey, list[FoldedEvent]]:
    events: dict[ActionKey, list[FoldedEvent]] = {key: [] for key in keys}
    if not events:
        return {}
    of_elements = {hashes[key[:5]] for key in keys}
    for row in await connection.fetch(_SQL["events_of_elements"], _array(of_elements)):
        event = stored_event(*row)
        of_action = events.get(action_key(event.latest))
        if of_action is not None:
            of_action.append(event)
    return events


async def _write_actions(
    connection: asyncpg.Connection,
    actions: Mapping[ActionKey, tuple[Action | None, Action | None]],
    hashes: Mapping[ElementKey, int],
) -> None:
    new, changed, gone = [], [], []
    for key, (before, after) in actions.items():
        identity = (*key[:2], _digest(*key[2:]))
        if after is None:
            gone.append(identity)
        elif before is None:
            kind = _kind(key[1], key[3], key[5])
            new.append((*identity, *key[2:], hashes[key[:5]], kind, *astuple(after)))
        else:
            changed.append(identity + astuple(after))
    if new:
        await connection.copy_records_to_table(
            "action", schema_name="execution_events", columns=_ACTION_COLUMNS, records=new
        )
    if changed:
        columns = dict(zip(_CHANGED_COLUMNS, zip(*changed, strict=True), strict=True))
        await connection.execute(
            _CHANGE_ACTIONS, *(columns[column] for column in _CHANGE_ACTIONS_COLUMNS)
        )
    if gone:
        await connection.execute(_SQL["delete_actions"], *zip(*gone, strict=True))


def _hash(texts: Iterable[str]) -> int:
    return crc32("\0".join(texts).encode())


def _array(numbers: Iterable[int]) -> str:
    """Return PostgreSQL's literal of an array."""
    return f"{{{','.join(map(str, numbers))}}}"
