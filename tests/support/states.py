"""States by their definition: recomputed from all events, and compared with what is stored.

Shares no code with the product.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple
from zlib import crc32

import asyncpg

COUNT_MAX = 9007199254740991
STATES = ("running", "succeeded", "failed", "timed_out", "cancelled", "unknown")
OF_REASON = {
    "ActionStart": "running",
    "ActionRetry": "running",
    "SuccessfulFinish": "succeeded",
    "ActionFailed": "failed",
    "ActionCancelled": "cancelled",
    "ActionTimeout": "timed_out",
}
ON_A_TIE = ("failed", "timed_out", "cancelled", "succeeded", "running")
OF_ELEMENT = ("running", "failed", "timed_out", "cancelled", "succeeded", "unknown")
OF_EXECUTION = ("failed", "timed_out", "running", "cancelled", "succeeded", "unknown")

Key = tuple[str, ...]
Rows = dict[Any, dict[str, Any]]
"""Columns by key."""


class Event(NamedTuple):
    """A folded event; moments are of any type with an order."""

    execution_id: str
    namespace: str
    name: str
    object_name: str
    elem_type: str
    elem_id: str
    action_name: str
    reason: str
    message: str
    type: str
    last_timestamp: Any
    occurrences: int

    @property
    def action(self) -> tuple[str, str, str, str, str, str]:
        return (
            self.execution_id,
            self.namespace,
            self.object_name,
            self.elem_type,
            self.elem_id,
            self.action_name,
        )

    @property
    def code(self) -> str:
        return english(self.reason)


def english(text: str) -> str:
    """Return the text after the first `##`."""
    return text.split("##", 1)[-1].strip(" ")


def actions(events: Iterable[Event]) -> Rows:
    """Return the columns of `action` by execution, namespace, object, type, element and action."""
    by_action = defaultdict(list)
    for event in events:
        by_action[event.action].append(event)
    return {key: _action(of_action) for key, of_action in by_action.items()}


def _action(events: list[Event]) -> dict[str, Any]:
    state, deciding = "unknown", None
    told = [event for event in events if event.code in OF_REASON]
    if told:
        decided_at = max(event.last_timestamp for event in told)
        told = [event for event in told if event.last_timestamp == decided_at]
        state = min((OF_REASON[event.code] for event in told), key=ON_A_TIE.index)
        deciding = _greatest(event for event in told if OF_REASON[event.code] == state)
    last_seen = max(event.last_timestamp for event in events)
    last = [event for event in events if event.last_timestamp == last_seen]
    ended = deciding is not None and state != "running"
    failed = deciding if state in ("failed", "timed_out") else None
    return {
        "last_seen": last_seen,
        "last_event": (deciding if deciding in last else _greatest(last)).name,
        "state": state,
        "decided_at": deciding.last_timestamp if deciding else None,
        "decided_by": deciding.name if deciding else None,
        "finished": deciding.last_timestamp if deciding and ended else None,
        "started": max(
            (event.last_timestamp for event in events if event.code == "ActionStart"), default=None
        ),
        "attempts": _total(event for event in events if event.code == "ActionStart"),
        "retries": _total(event for event in events if event.code == "ActionRetry"),
        "warnings": _total(event for event in events if event.type == "Warning"),
        "failure": english(failed.message) if failed else None,
        "fingerprint": fingerprint(failed) if failed else None,
    }


def _greatest(events: Iterable[Event]) -> Event:
    return max(events, key=lambda event: event.name.encode())


def _total(events: Iterable[Event]) -> int:
    return min(sum(event.occurrences for event in events), COUNT_MAX)


def fingerprint(event: Event) -> str:
    """Return the fingerprint of a failure."""
    text = english(event.message)
    identifiers = (event.execution_id, event.object_name, event.elem_id)
    for identifier in sorted(identifiers, key=len, reverse=True):
        text = re.sub(rf"(?<![A-Za-z0-9_]){re.escape(identifier)}(?![A-Za-z0-9_])", "<>", text)
    text = re.sub("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", "<>", text)
    text = re.sub("0[xX][0-9A-Fa-f]+", "<>", text)
    text = re.sub("[0-9]{4,}", "<>", text)
    return sha256("\0".join((event.elem_type, event.code, text)).encode()).hexdigest()[:16]


def elements(of_actions: Rows) -> Rows:
    """Return the number of each element's actions in each state."""
    tallies: dict[Key, Counter[str]] = defaultdict(Counter)
    for key, action in of_actions.items():
        tallies[key[:5]][action["state"]] += 1
    return {key: {state: tally[state] for state in STATES} for key, tally in tallies.items()}


def element_state(element: Mapping[str, int]) -> str:
    """Return the state of an element by its actions."""
    return next(state for state in OF_ELEMENT if element[state])


def executions(events: Iterable[Event], of_actions: Rows) -> Rows:
    """Return the counters of each execution, and its state."""
    counted = Counter((event.execution_id, event.namespace) for event in events)
    states: dict[Key, Counter[str]] = defaultdict(Counter)
    for key, element in elements(of_actions).items():
        states[key[:2]][element_state(element)] += 1
    warnings: Counter[Key] = Counter()
    for key, action in of_actions.items():
        warnings[key[:2]] += action["warnings"]
    return {
        key: {
            "events": counted[key[0], key[1]],
            "elements": tally.total(),
            **{state: tally[state] for state in STATES},
            "warnings": min(warnings[key], COUNT_MAX),
            "state": next(state for state in OF_EXECUTION if tally[state]),
        }
        for key, tally in states.items()
    }


_EVENTS = """
SELECT execution_id, namespace, name, object_name, elem_type, elem_id, action_name, reason,
    convert_from(body, 'UTF8') AS body, type,
    (extract(epoch FROM last_timestamp) * 1000000)::bigint AS last_timestamp, count, element_hash
FROM execution_events.event
"""
_ACTIONS = """
SELECT execution_id, namespace, object_name, elem_type, elem_id, action_name,
    action_key, kind,
    (extract(epoch FROM last_seen) * 1000000)::bigint AS last_seen, last_event, state,
    (extract(epoch FROM decided_at) * 1000000)::bigint AS decided_at, decided_by,
    (extract(epoch FROM finished) * 1000000)::bigint AS finished,
    (extract(epoch FROM started) * 1000000)::bigint AS started,
    attempts, retries, warnings, failure, fingerprint
FROM execution_events.action
"""
_EXECUTIONS = """
SELECT execution_id, namespace, events, elements, running, succeeded, failed, timed_out, cancelled,
    elements - running - succeeded - failed - timed_out - cancelled AS unknown, warnings, state
FROM execution_events.execution
"""


async def differences(connection: asyncpg.Connection) -> list[str]:
    """Compare the stored states with a recomputation from the stored events.

    The caller has a snapshot, or nothing is written meanwhile.
    """
    of_events = await connection.fetch(_EVENTS)
    of_actions = await connection.fetch(_ACTIONS)
    of_executions = await connection.fetch(_EXECUTIONS)
    events = [
        Event._make([*row[:8], json.loads(row[8])["message"], *row[9:12]]) for row in of_events
    ]
    expected = actions(events)
    found = {tuple(row[:6]): dict([*row.items()][8:]) for row in of_actions}
    wrong = [
        f"{row}: its hash is of another element"
        for row in of_events
        if row["element_hash"] != _hash(row)
    ]
    wrong += [
        f"action {tuple(row[:6])}: its key or kind is of another"
        for row in of_actions
        if row["action_key"] != _sha256(row[2:6])[:16]
        or row["kind"] != int.from_bytes(_sha256((row[1], row[3], row[5]))[:8], signed=True)
    ]
    wrong += compared("action", expected, found)
    wrong += compared(
        "execution",
        executions(events, expected),
        {tuple(row[:2]): dict([*row.items()][2:]) for row in of_executions},
    )
    return wrong


def _sha256(texts: Iterable[str]) -> bytes:
    return sha256("\0".join(texts).encode()).digest()


def _hash(row: asyncpg.Record) -> int:
    execution = f"{row['execution_id']}\0{row['namespace']}"
    element = f"{row['object_name']}\0{row['elem_type']}\0{row['elem_id']}"
    return (crc32(execution.encode()) << 32 | crc32(element.encode())) - 2**63


def compared(what: str, expected: Rows, found: Rows) -> list[str]:
    """Describe the differences of rows, in the columns that were found."""
    wrong = [f"{what} {key}: none, not {expected[key]}" for key in expected.keys() - found.keys()]
    wrong += [f"{what} {key}: {found[key]}, not none" for key in found.keys() - expected.keys()]
    wrong += [
        f"{what} {key}: {column} is {value!r}, not {expected[key][column]!r}"
        for key in expected.keys() & found.keys()
        for column, value in found[key].items()
        if expected[key][column] != value
    ]
    return sorted(wrong)
