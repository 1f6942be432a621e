"""States of actions and elements, written to the tables `action` and `element`."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

import asyncpg
from msgspec.structs import astuple

from execution_events.projection.fold import FoldedEvent
from execution_events.projection.states import (
    STATES,
    Action,
    ActionChange,
    ActionEvents,
    ActionKey,
    ElementChange,
    ElementKey,
    ExecutionDelta,
    Tally,
    action_key,
    advance,
    advance_element,
    changed_elements,
    execution_deltas,
    recompute,
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
    *_STATE_COLUMNS,
)
_CHANGED_COLUMNS = ("execution_id", "namespace", "action_key", *_STATE_COLUMNS)
_ELEMENT_COLUMNS = ("execution_id", "namespace", "element_key", *STATES)
_CHANGE_ACTIONS, _CHANGE_ACTIONS_COLUMNS = number_arguments(_SQL["change_actions"])

Execution = tuple[str, str]
"""(execution id, namespace)"""


class ActionId(NamedTuple):
    """The identity of an action in tables.

    `digest` is `action_key` of the table `action`; `hash` is `action_hash` of the action's events,
    which an action of another execution may share.
    """

    digest: bytes
    hash: int


def action_ids(keys: Iterable[ActionKey]) -> dict[ActionKey, ActionId]:
    """Return the identity of each action."""
    ids = {}
    for key in keys:
        digest = _digest(key)
        execution = crc32(f"{key[0]}\0{key[1]}".encode())
        hash_ = int.from_bytes(execution.to_bytes(4, "big") + digest[:4], "big", signed=True)
        ids[key] = ActionId(digest, hash_)
    return ids


async def write_states(
    connection: asyncpg.Connection,
    events: ActionEvents,
    ids: Mapping[ActionKey, ActionId],
    known: Collection[Execution],
) -> Mapping[Execution, ExecutionDelta]:
    """Apply `events` to their actions and elements, in the caller's transaction.

    They are written already, and their executions locked; `known` are the executions that were
    stored before. Returns the change of each execution's counters.
    """
    stored = await _stored_actions(connection, ids, known)
    recomputed = await _events_of(connection, events.rewritten, ids)
    actions = {}
    for key in ids:
        before = stored.get(key)
        after = (
            recompute(recomputed[key]) if key in recomputed else advance(before, events.added[key])
        )
        actions[key] = ActionChange(before, after)
    changed = changed_elements(actions)
    tallies = await _stored_elements(connection, [key for key in changed if key[:2] in known])
    elements = {key: advance_element(tallies.get(key), each) for key, each in changed.items()}
    await _write_actions(connection, actions, ids)
    await _write_elements(connection, elements)
    return execution_deltas(actions, elements)


async def _stored_actions(
    connection: asyncpg.Connection,
    ids: Mapping[ActionKey, ActionId],
    known: Collection[Execution],
) -> dict[ActionKey, Action]:
    keys = [key for key in ids if key[:2] in known]
    if not keys:
        return {}
    rows = await connection.fetch(
        _SQL["stored_actions"],
        [key[0] for key in keys],
        [key[1] for key in keys],
        [ids[key].digest for key in keys],
    )
    return {keys[ordinal - 1]: Action(*columns) for ordinal, *columns in rows}


async def _events_of(
    connection: asyncpg.Connection, keys: Collection[ActionKey], ids: Mapping[ActionKey, ActionId]
) -> dict[ActionKey, list[FoldedEvent]]:
    events: dict[ActionKey, list[FoldedEvent]] = {key: [] for key in keys}
    if not events:
        return {}
    hashes = {ids[key].hash for key in keys}
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
        [key[0] for key in keys],
        [key[1] for key in keys],
        [_digest(key) for key in keys],
    )
    return {
        keys[ordinal - 1]: dict(zip(STATES, numbers, strict=True)) for ordinal, *numbers in rows
    }


async def _write_actions(
    connection: asyncpg.Connection,
    actions: Mapping[ActionKey, ActionChange],
    ids: Mapping[ActionKey, ActionId],
) -> None:
    new, changed, gone = [], [], []
    for key, change in actions.items():
        execution, digest = key[:2], ids[key].digest
        if change.after is None:
            gone.append((*execution, digest))
        elif change.before is None:
            new.append((*execution, digest, *key[2:], *astuple(change.after)))
        else:
            changed.append((*execution, digest, *astuple(change.after)))
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


async def _write_elements(
    connection: asyncpg.Connection, elements: Mapping[ElementKey, ElementChange]
) -> None:
    new, changed, gone = [], [], []
    for key, change in elements.items():
        identity = (*key[:2], _digest(key))
        row = (*identity, *(change.after.get(state, 0) for state in STATES))
        if not any(change.after.values()):
            gone.append(identity)
        elif change.before:
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


def _digest(key: ActionKey | ElementKey) -> bytes:
    """Return the first 16 bytes of SHA-256 over the texts of `key` beside its execution."""
    return sha256("\0".join(key[2:]).encode()).digest()[:16]
