"""The states of actions, elements and executions, derived from their events.

An action is kept as the result of its events alone, so it equals a recomputation from them at every
revision, in whatever order and batches they arrived. What a batch costs depends on its events, not
on the size of their executions.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from datetime import datetime
from functools import lru_cache

import msgspec

from execution_events.bilingual import half
from execution_events.events import COUNT_MAX, WARNING, Occurrence
from execution_events.projection.failure import failure_fingerprint
from execution_events.projection.fold import FoldedEvent

STATES = ("running", "succeeded", "failed", "timed_out", "cancelled", "unknown")

START = "ActionStart"
RETRY = "ActionRetry"
STATE_OF_REASON = {
    START: "running",
    RETRY: "running",
    "SuccessfulFinish": "succeeded",
    "ActionFailed": "failed",
    "ActionTimeout": "timed_out",
    "ActionCancelled": "cancelled",
}
"""The state that an event gives its action, by the code of its reason; others give none."""

TIE_PRECEDENCE = ("failed", "timed_out", "cancelled", "succeeded", "running")
"""Of an action's events with the same last timestamp, the first of these states decides."""
ELEMENT_PRECEDENCE = ("running", "failed", "timed_out", "cancelled", "succeeded", "unknown")
"""An element is in the first of these states that any of its actions is in."""

_FAILURES = ("failed", "timed_out")
_RANK = {state: -position for position, state in enumerate(TIE_PRECEDENCE)}

ElementKey = tuple[str, str, str, str, str]
"""(execution id, namespace, object name, element type, element)"""
ActionKey = tuple[str, str, str, str, str, str]
"""The key of its element, and the action's name."""
Tally = dict[str, int]
"""A number of actions or elements by state; may lack states without any."""


class EventChange(msgspec.Struct, gc=False):
    """An event that a batch changes: as it was stored, None if it is new, and as it is now.

    `action` is the key of the action that it is in now.
    """

    stored: FoldedEvent | None
    event: FoldedEvent
    action: ActionKey


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
    state: str = "unknown"
    decided_at: datetime | None = None
    decided_by: str | None = None
    started: datetime | None = None
    attempts: int = 0
    retries: int = 0
    warnings: int = 0
    failure: str | None = None
    fingerprint: str | None = None


class ActionEvents(msgspec.Struct, frozen=True):
    """The events of a batch, by the action that they are in now.

    `added` holds each event and the number of its new occurrences. An action in `rewritten` has
    lost an event, or an event of it has another meaning now; it is recomputed from all of its
    events.
    """

    added: dict[ActionKey, list[tuple[FoldedEvent, int]]]
    rewritten: set[ActionKey]

    def keys(self) -> set[ActionKey]:
        """Return the keys of all actions that may change."""
        return self.rewritten.union(self.added)


class ActionChange(msgspec.Struct, frozen=True, gc=False):
    """An action before and after a batch; None where it has no events."""

    before: Action | None
    after: Action | None

    def states(self) -> tuple[str | None, str | None]:
        """Return the states before and after."""
        before, after = self.before, self.after
        return before.state if before else None, after.state if after else None


class ElementChange(msgspec.Struct, frozen=True, gc=False):
    """The tally of an element's actions before and after a batch; empty where it has none."""

    before: Tally
    after: Tally


class ExecutionDelta(msgspec.Struct):
    """The change of an execution's elements by state, and of its warnings; may be negative."""

    elements: Tally
    warnings: int = 0


def action_key(latest: Occurrence) -> ActionKey:
    """Return the key of the action that an event with the texts of `latest` is in."""
    return (
        latest.execution_id,
        latest.namespace,
        latest.object_name,
        latest.elem_type,
        latest.elem_id,
        latest.action_name,
    )


def events_by_action(changes: Iterable[EventChange]) -> ActionEvents:
    """Group `changes`, at most one an event, by action."""
    added: dict[ActionKey, list[tuple[FoldedEvent, int]]] = {}
    rewritten: set[ActionKey] = set()
    for change in changes:
        stored, event, key = change.stored, change.event, change.action
        count = event.count
        if stored is not None:
            before = action_key(stored.latest)
            if before == key and _meaning(stored.latest) == _meaning(event.latest):
                count -= stored.count
            else:
                rewritten.add(before)
        events = added.get(key)
        if events is None:
            added[key] = [(event, count)]
        else:
            events.append((event, count))
    return ActionEvents(added, rewritten)


def recompute(events: Iterable[FoldedEvent]) -> Action | None:
    """Return the action that has these events alone; None without events."""
    added = [(event, event.count) for event in events]
    return advance(None, added) if added else None


def advance(stored: Action | None, added: Sequence[tuple[FoldedEvent, int]]) -> Action:
    """Return the action `stored`, or a new one, after at least one event in `added`.

    `added` holds each event as it is now, and the number of its new occurrences.
    """
    if stored is None:
        first = added[0][0].latest
        action = Action(first.last_timestamp, first.name)
    else:
        action = copy(stored)
    deciding = None
    for event, count in added:
        latest = event.latest
        name, moment = latest.name, latest.last_timestamp
        if moment > action.last_seen or (moment == action.last_seen and name > action.last_event):
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
        # Equal where the deciding event recurs, perhaps with another message.
        if action.decided_at is None or (moment, _RANK[state], name) >= (
            action.decided_at,
            _RANK[action.state],
            action.decided_by,
        ):
            action.state, action.decided_at, action.decided_by = state, moment, name
            deciding = latest
    if deciding is not None:
        _set_failure(action, deciding)
    if action.decided_by is not None and action.decided_at == action.last_seen:
        action.last_event = action.decided_by
    return action


def state_of(tally: Mapping[str, int]) -> str | None:
    """Return the state of an element by its actions; None without actions."""
    return next((state for state in ELEMENT_PRECEDENCE if tally.get(state)), None)


def changed_elements(
    actions: Mapping[ActionKey, ActionChange],
) -> dict[ElementKey, list[ActionChange]]:
    """Return the actions that change their state, by element."""
    changed: dict[ElementKey, list[ActionChange]] = {}
    for key, action in actions.items():
        before, after = action.states()
        if before != after:
            changed.setdefault(key[:5], []).append(action)
    return changed


def advance_element(stored: Tally | None, changed: Iterable[ActionChange]) -> ElementChange:
    """Apply the changes of an element's actions to its tally; None is one without actions."""
    before = stored or {}
    after = dict(before)
    for action in changed:
        _move(after, *action.states())
    return ElementChange(before, after)


def execution_deltas(
    actions: Mapping[ActionKey, ActionChange], elements: Mapping[ElementKey, ElementChange]
) -> dict[tuple[str, str], ExecutionDelta]:
    """Return the change of each execution that any of `actions` is of."""
    deltas: dict[tuple[str, str], ExecutionDelta] = {}
    for key, action in actions.items():
        delta = deltas.get(key[:2])
        if delta is None:
            delta = deltas[key[:2]] = ExecutionDelta({})
        if action.after is not None:
            delta.warnings += action.after.warnings
        if action.before is not None:
            delta.warnings -= action.before.warnings
    for element, change in elements.items():
        _move(deltas[element[:2]].elements, state_of(change.before), state_of(change.after))
    return deltas


def _move(tally: Tally, before: str | None, after: str | None) -> None:
    if before is not None:
        tally[before] = tally.get(before, 0) - 1
    if after is not None:
        tally[after] = tally.get(after, 0) + 1


def _set_failure(action: Action, deciding: Occurrence) -> None:
    if action.state not in _FAILURES:
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
