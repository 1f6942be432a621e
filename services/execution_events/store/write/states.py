"""States of actions and elements, written to the tables `action` and `element`."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

import asyncpg
from msgspec.structs import astuple

from execution_events.projection.fold import FoldedEvent
from execution_events.projection.states import (
    NO_TALLY,
    STATES,
    Action,
    ActionEvents,
    ActionKey,
    ElementKey,
    Execution,
    StateChange,
    Tally,
    action_key,
    advance_all,
    advance_elements,
)
from execution_events.store.sql import array_literal, load_queries, number_arguments
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
    executions: dict[Execution, int] = {}
    for key in keys:
        digest = _digest(key)
        execution = executions.get(key[:2])
        if execution is None:
            execution = executions[key[:2]] = crc32(f"{key[0]}\0{key[1]}".encode()) - 2**31 << 32
        ids[key] = ActionId(digest, execution + int.from_bytes(digest[:4], "big"))
    return ids


class ExecutionDelta(NamedTuple):
    """The change of an execution's elements in each of `STATES`, and of its warnings."""

    elements: Tally
    warnings: int


async def write_states(
    connection: asyncpg.Connection,
    events: ActionEvents,
    ids: Mapping[ActionKey, ActionId],
    known: Collection[Execution],
) -> dict[Execution, ExecutionDelta]:
    """Apply `events` to their actions and elements, in the caller's transaction.

    They are written already, and their executions locked; `known` are the executions that were
    stored before. Returns the change of each execution's counters, unless there is none.
    """
    stored = await _stored_actions(connection, ids, known)
    remaining = await _events_of(connection, events.rewritten, ids)
    changes = advance_all(events, stored, remaining)
    await _write_actions(connection, changes.actions, ids)
    deltas = await _write_elements(connection, changes.elements, known)
    return {
        execution: ExecutionDelta(
            deltas.get(execution, NO_TALLY), changes.warnings.get(execution, 0)
        )
        for execution in deltas.keys() | changes.warnings.keys()
    }


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
        array_literal([key[0] for key in keys]),
        array_literal([key[1] for key in keys]),
        array_literal([rf"\x{ids[key].digest.hex()}" for key in keys]),
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


async def _write_actions(
    connection: asyncpg.Connection,
    actions: Mapping[ActionKey, tuple[Action | None, Action | None]],
    ids: Mapping[ActionKey, ActionId],
) -> None:
    new, changed, gone = [], [], []
    for key, (before, after) in actions.items():
        identity = (*key[:2], ids[key].digest)
        if after is None:
            gone.append(identity)
        elif before is None:
            new.append(identity + key[2:] + astuple(after))
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


async def _write_elements(
    connection: asyncpg.Connection,
    changes: Mapping[ElementKey, Sequence[StateChange]],
    known: Collection[Execution],
) -> dict[Execution, Tally]:
    """Apply changes of actions' states; return the change of each execution's elements."""
    digests = {key: _digest(key) for key in changes}
    stored = await _stored_elements(
        connection, {key: digest for key, digest in digests.items() if key[:2] in known}
    )
    tallies, deltas = advance_elements(changes, stored)
    new, changed, gone = [], [], []
    for key, tally in tallies.items():
        row = (*key[:2], digests[key], *tally)
        if tally == NO_TALLY:
            gone.append(row[:3])
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
    return deltas


async def _stored_elements(
    connection: asyncpg.Connection, digests: Mapping[ElementKey, bytes]
) -> dict[ElementKey, Tally]:
    if not digests:
        return {}
    keys = list(digests)
    rows = await connection.fetch(
        _SQL["stored_elements"],
        array_literal([key[0] for key in keys]),
        array_literal([key[1] for key in keys]),
        array_literal([rf"\x{digest.hex()}" for digest in digests.values()]),
    )
    return {keys[ordinal - 1]: numbers for ordinal, *numbers in rows}


def _digest(key: ActionKey | ElementKey) -> bytes:
    """Return the first 16 bytes of SHA-256 over the texts of `key` beside its execution."""
    return sha256("\0".join(key[2:]).encode()).digest()[:16]
