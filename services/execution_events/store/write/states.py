"""States of actions, written to the table `action`."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple
from zlib import crc32

import asyncpg
from msgspec.structs import astuple

from execution_events.projection.fold import FoldedEvent
from execution_events.projection.states import (
    Action,
    ActionChange,
    ElementKey,
    Execution,
    element_key,
)
from execution_events.store.sql import array_literal, load_queries
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
    "kind",
    *_STATE_COLUMNS,
)
_CHANGED_TEXTS = (0, 1, 4, 5)
"""Positions of columns without nulls in a row that changes: its key, then `_STATE_COLUMNS`."""


class ActionRows(NamedTuple):
    """Rows of actions to insert, to change and to delete.

    New ones have the values of `_ACTION_COLUMNS`, changed ones their key and `_STATE_COLUMNS`, and
    those without events their key.
    """

    new: list[tuple[Any, ...]]
    changed: list[tuple[Any, ...]]
    gone: list[tuple[str, str, bytes]]


def element_hashes(elements: Iterable[ElementKey]) -> dict[ElementKey, int]:
    """Return the `element_hash` of each of the elements."""
    executions: dict[Execution, int] = {}
    hashes = {}
    for key in elements:
        execution = executions.get(key[:2])
        if execution is None:
            execution = executions[key[:2]] = (_hash(key[:2]) << 32) - 2**63
        hashes[key] = execution + _hash(key[2:])
    return hashes


async def stored_elements(
    connection: asyncpg.Connection, hashes: Mapping[ElementKey, int]
) -> dict[ElementKey, dict[str, Action]]:
    """Return the stored actions of each element, by name; the batch is not written yet."""
    elements: dict[ElementKey, dict[str, Action]] = {key: {} for key in hashes}
    if elements:
        for row in await connection.fetch(_SQL["stored_actions"], _array(hashes.values())):
            actions = elements.get(tuple(row[:5]))
            if actions is not None:
                actions[row[5]] = Action(*row[6:])
    return elements


async def remaining_events(
    connection: asyncpg.Connection,
    rewritten: Mapping[ElementKey, Iterable[str]],
    hashes: Mapping[ElementKey, int],
    current: Iterable[FoldedEvent],
) -> dict[tuple[ElementKey, str], list[FoldedEvent]]:
    """Return all events that the rewritten actions have once the batch is written.

    `current` are the batch's events as they are then.
    """
    remaining: dict[tuple[ElementKey, str], list[FoldedEvent]] = {
        (key, name): [] for key, names in rewritten.items() for name in names
    }
    if remaining:
        of_elements = {hashes[key] for key in rewritten}
        rows = await connection.fetch(_SQL["events_of_elements"], _array(of_elements))
        events = {event.identity: event for event in (stored_event(*row) for row in rows)}
        events |= {event.identity: event for event in current}
        for event in events.values():
            of_action = remaining.get((element_key(event.latest), event.latest.action_name))
            if of_action is not None:
                of_action.append(event)
    return remaining


def action_rows(changes: Iterable[ActionChange]) -> ActionRows:
    """Return the rows that write `changes`."""
    new, changed, gone = [], [], []
    for element, name, before, after in changes:
        execution_id, namespace, object_name, elem_type, elem_id = element
        identity = execution_id, namespace, _digest(object_name, elem_type, elem_id, name)
        if after is None:
            if before is not None:
                gone.append(identity)
        elif before is None:
            texts = object_name, elem_type, elem_id, name
            new.append((*identity, *texts, _kind(namespace, elem_type, name), *astuple(after)))
        else:
            changed.append(identity + astuple(after))
    return ActionRows(new, changed, gone)


async def write_actions(connection: asyncpg.Connection, rows: ActionRows) -> None:
    """Write changed actions, whose executions are locked, in the caller's transaction."""
    new, changed, gone = rows
    if new:
        await connection.copy_records_to_table(
            "action", schema_name="execution_events", columns=_ACTION_COLUMNS, records=new
        )
    if changed:
        columns: list[object] = list(zip(*changed, strict=True))
        for position in _CHANGED_TEXTS:
            columns[position] = array_literal(row[position] for row in changed)
        await connection.execute(_SQL["change_actions"], *columns)
    if gone:
        await connection.execute(_SQL["delete_actions"], *zip(*gone, strict=True))


def _digest(*texts: str) -> bytes:
    return sha256("\0".join(texts).encode()).digest()[:16]


@lru_cache(maxsize=4096)
def _kind(namespace: str, elem_type: str, action_name: str) -> int:
    """Return the `kind` of an action."""
    return int.from_bytes(_digest(namespace, elem_type, action_name)[:8], signed=True)


def _hash(texts: Iterable[str]) -> int:
    return crc32("\0".join(texts).encode())


def _array(numbers: Iterable[int]) -> str:
    """Return PostgreSQL's literal of an array."""
    return f"{{{','.join(map(str, numbers))}}}"
