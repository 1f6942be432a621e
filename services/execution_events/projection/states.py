"""The states of actions, elements and executions, derived from their events.

An action is kept as the result of its events alone, so it equals a recomputation from them at every
revision, in whatever order and batches they arrived. What a batch costs depends on its events, not
on the size of their executions.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

import msgspec

from execution_events.bilingual import half
from execution_events.events import COUNT_MAX, WARNING, Occurrence
from execution_events.projection.failure import failure_fingerprint
from execution_events.projection.fold import FoldedEvent

RUNNING = "running"
SUCCEEDED = "succeeded"
FAILED = "failed"
TIMED_OUT = "timed_out"
CANCELLED = "cancelled"
UNKNOWN = "unknown"

START = "ActionStart"
RETRY = "ActionRetry"

STATE_OF_REASON = {
    START: RUNNING,
    RETRY: RUNNING,
    "SuccessfulFinish": SUCCEEDED,
    "ActionFailed": FAILED,
    "ActionCancelled": CANCELLED,
    "ActionTimeout": TIMED_OUT,
}
"""The state that an event's reason code gives its action; other codes give none."""

FAILURES = (FAILED, TIMED_OUT)

STATES = (RUNNING, SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, UNKNOWN)

_TIE = {RUNNING: 0, SUCCEEDED: 1, CANCELLED: 2, TIMED_OUT: 3, FAILED: 4}
"""Precedence among events of one action with the same last timestamp; the greatest decides."""

ELEMENT_PRECEDENCE = (RUNNING, FAILED, TIMED_OUT, CANCELLED, SUCCEEDED, UNKNOWN)
"""An element is in the first of these states that any of its actions is in."""

EXECUTION_PRECEDENCE = (FAILED, TIMED_OUT, RUNNING, CANCELLED, SUCCEEDED, UNKNOWN)
"""An execution is in the first of these states that any of its elements is in."""


class ElementKey(NamedTuple):
    """The identity of an element."""

    execution_id: str
    namespace: str
    object_name: str
    elem_type: str
    elem_id: str


class ActionKey(NamedTuple):
    """The identity of an action."""

    execution_id: str
    namespace: str
    object_name: str
    elem_type: str
    elem_id: str
    action_name: str

    @property
    def element(self) -> ElementKey:
        """The element that it is an action of."""
        return ElementKey(*self[:5])


class EventChange(NamedTuple):
    """An event that a batch changes: as it was stored, or None, and as it is now."""

    stored: FoldedEvent | None
    event: FoldedEvent


class Action(msgspec.Struct, gc=False):
    """The state of an action, from all of its events.

    The event `decided_by`, last seen at `decided_at`, decides the state; both are None while the
    state is unknown. `last_event` is the event with the greatest last timestamp, on a tie
    `decided_by` if it is among them, else the one with the greatest name. `started` is the last
    timestamp of the latest ActionStart. `failure` and `fingerprint` are of the deciding event, None
    unless the action is failed or timed out.
    """

    last_seen: datetime
    last_event: str
    state: str = UNKNOWN
    decided_at: datetime | None = None
    decided_by: str | None = None
    started: datetime | None = None
    attempts: int = 0
    retries: int = 0
    warnings: int = 0
    failure: str | None = None
    fingerprint: str | None = None

    @property
    def finished(self) -> datetime | None:
        """The time of its end; None while it runs or its state is unknown."""
        return None if self.state in (RUNNING, UNKNOWN) else self.decided_at


class ActionChanges(msgspec.Struct, frozen=True):
    """The effect of a batch's events on actions.

    `added` holds events with their new occurrences, by the action that they are in. An action in
    `rewritten` has lost an event, or an event of it has another meaning now; it is recomputed from
    all of its events.
    """

    added: dict[ActionKey, list[tuple[FoldedEvent, int]]]
    rewritten: set[ActionKey]

    def keys(self) -> set[ActionKey]:
        """Return the keys of all actions that may change."""
        return self.rewritten.union(self.added)


def action_key(latest: Occurrence) -> ActionKey:
    """Return the key of the action that an event with the texts of `latest` is in."""
    return ActionKey(
        latest.execution_id,
        latest.namespace,
        latest.object_name,
        latest.elem_type,
        latest.elem_id,
        latest.action_name,
    )


def action_changes(changes: Iterable[EventChange]) -> ActionChanges:
    """Return the effect of `changes`, at most one an event, on the actions of their events."""
    added: dict[ActionKey, list[tuple[FoldedEvent, int]]] = {}
    rewritten: set[ActionKey] = set()
    for stored, event in changes:
        latest = event.latest
        key = action_key(latest)
        count = event.count
        if stored is not None:
            before = action_key(stored.latest)
            if before == key and _meaning(stored.latest) == _meaning(latest):
                count -= stored.count
            else:
                rewritten.add(before)
        events = added.get(key)
        if events is None:
            added[key] = [(event, count)]
        else:
            events.append((event, count))
    return ActionChanges(added, rewritten)


def recompute(events: Iterable[FoldedEvent]) -> Action | None:
    """Return the action that has these events alone; None without events."""
    added = [(event, event.count) for event in events]
    return advance(None, added) if added else None


def advance(stored: Action | None, added: Sequence[tuple[FoldedEvent, int]]) -> Action:
    """Return the action `stored`, or a new one, after at least one event in `added`.

    `added` holds each event as it is now, and the number of its new occurrences.
    """
    if stored is None:
        (first, _), *_ = added
        action = Action(first.latest.last_timestamp, first.latest.name)
    else:
        action = copy(stored)
    deciding = None
    for event, count in added:
        latest = event.latest
        name, moment = latest.name, latest.last_timestamp
        if (moment, name) > (action.last_seen, action.last_event):
            action.last_seen, action.last_event = moment, name
        if latest.type == WARNING:
            action.warnings = min(action.warnings + count, COUNT_MAX)
        code = reason_code(latest.reason)
        state = STATE_OF_REASON.get(code)
        if state is None:
            continue
        if code == START:
            action.attempts = min(action.attempts + count, COUNT_MAX)
            if action.started is None or moment > action.started:
                action.started = moment
        elif code == RETRY:
            action.retries = min(action.retries + count, COUNT_MAX)
        if action.decided_at is None or (moment, _TIE[state], name) >= (
            action.decided_at,
            _TIE[action.state],
            action.decided_by,
        ):
            action.state, action.decided_at, action.decided_by = state, moment, name
            deciding = latest
    if deciding is not None:
        _set_failure(action, deciding)
    if action.decided_by is not None and action.decided_at == action.last_seen:
        action.last_event = action.decided_by
    return action


class ActionChange(NamedTuple):
    """An action before and after a batch; None where it has no events."""

    before: Action | None
    after: Action | None


Tally = dict[str, int]
"""A number of actions or elements in each state; may lack states without any."""


class ExecutionDelta(msgspec.Struct):
    """The change of an execution's elements by state, and of its warnings; may be negative."""

    elements: Tally
    warnings: int = 0


def state_of(tally: Mapping[str, int], precedence: Sequence[str]) -> str | None:
    """Return the first state of `precedence` that occurs in `tally`; None if none does."""
    return next((state for state in precedence if tally.get(state)), None)


def changed_elements(changes: Mapping[ActionKey, ActionChange]) -> set[ElementKey]:
    """Return the elements whose tallies `changes` alter."""
    return {
        key.element for key, change in changes.items() if _state(change[0]) != _state(change[1])
    }


def apply_to_elements(
    changes: Mapping[ActionKey, ActionChange], stored: Mapping[ElementKey, Tally]
) -> tuple[dict[ElementKey, Tally], dict[tuple[str, str], ExecutionDelta]]:
    """Return the new tally of each changed element, and the delta of each execution.

    `stored` holds the tallies of the changed elements that exist. An element without actions has
    an empty tally.
    """
    tallies: dict[ElementKey, Tally] = {}
    deltas: dict[tuple[str, str], ExecutionDelta] = {}
    for key, (before, after) in changes.items():
        delta = deltas.get(key[:2])
        if delta is None:
            delta = deltas[key[:2]] = ExecutionDelta({})
        delta.warnings += (after.warnings if after else 0) - (before.warnings if before else 0)
        old, new = _state(before), _state(after)
        if old == new:
            continue
        element = key.element
        tally = tallies.get(element)
        if tally is None:
            tally = tallies[element] = dict(stored.get(element, ()))
        _move(tally, old, new)
    for element, tally in tallies.items():
        old = state_of(stored.get(element, {}), ELEMENT_PRECEDENCE)
        _move(deltas[element[:2]].elements, old, state_of(tally, ELEMENT_PRECEDENCE))
    return tallies, deltas


def _state(action: Action | None) -> str | None:
    return None if action is None else action.state


def _move(tally: Tally, before: str | None, after: str | None) -> None:
    if before is not None:
        tally[before] = tally.get(before, 0) - 1
    if after is not None:
        tally[after] = tally.get(after, 0) + 1


def _set_failure(action: Action, deciding: Occurrence) -> None:
    if action.state not in FAILURES:
        action.failure = action.fingerprint = None
        return
    action.failure = half(deciding.message, "en")
    action.fingerprint = failure_fingerprint(
        reason_code(deciding.reason),
        action.failure,
        execution_id=deciding.execution_id,
        object_name=deciding.object_name,
        elem_type=deciding.elem_type,
        elem_id=deciding.elem_id,
    )


def _meaning(latest: Occurrence) -> tuple[str, bool]:
    """Return what the count of an event is added to."""
    code = reason_code(latest.reason)
    return (code if code in STATE_OF_REASON else ""), latest.type == WARNING


@lru_cache(maxsize=4096)
def reason_code(reason: str) -> str:
    """Return the code of a reason `<zh>##<code>`."""
    return half(reason, "en")
