"""The states of actions, elements and executions, derived from their events.

An action is kept as the result of its events alone, so it equals a recomputation from them at every
revision, in whatever order and batches they arrived. What a batch costs depends on its events, not
on the size of their executions.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache

import msgspec
from msgspec.structs import astuple, replace

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
_POSITION = {state: position for position, state in enumerate(STATES)}
_ELEMENT_POSITIONS = [(state, _POSITION[state]) for state in ELEMENT_PRECEDENCE]

Execution = tuple[str, str]
"""(execution id, namespace)"""
ElementKey = tuple[str, str, str, str, str]
"""(execution id, namespace, object name, element type, element)"""
ActionKey = tuple[str, str, str, str, str, str]
"""The key of its element, and the action's name."""
Tally = list[int]
"""The number of actions or elements in each of `STATES`, in their order."""
StateChange = tuple[str | None, str | None]
"""The states of an action before and after; None where it does not exist."""


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

    Each in `added` is the event as it is now, with the count of its new occurrences.
    An action in `rewritten` has lost an event, or an event of it has another meaning now; it is
    recomputed from all of its events.
    """

    added: dict[ActionKey, list[FoldedEvent]]
    rewritten: set[ActionKey]

    def keys(self) -> set[ActionKey]:
        """Return the keys of all actions that may change."""
        return self.rewritten.union(self.added)


class StateChanges(msgspec.Struct, frozen=True):
    """The effect of a batch on states.

    `actions` holds each action before and after, None where it has no events. `elements` holds the
    states before and after of each action whose state changes, by element. `warnings` holds the
    change of each execution's warnings unless it is 0; it may be negative.
    """

    actions: dict[ActionKey, tuple[Action | None, Action | None]]
    elements: dict[ElementKey, list[StateChange]]
    warnings: dict[Execution, int]


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


def element_key(latest: Occurrence) -> ElementKey:
    """Return the key of the element that an event with the texts of `latest` is of."""
    return (
        latest.execution_id,
        latest.namespace,
        latest.object_name,
        latest.elem_type,
        latest.elem_id,
    )


def events_by_action(
    new: Iterable[FoldedEvent], changed: Iterable[tuple[FoldedEvent, FoldedEvent]]
) -> ActionEvents:
    """Group events by action: `new` ones, and others as they were stored and as they are now."""
    added: dict[ActionKey, list[FoldedEvent]] = {}
    rewritten: set[ActionKey] = set()
    for event in new:
        key = action_key(event.latest)
        events = added.get(key)
        if events is None:
            added[key] = [event]
        else:
            events.append(event)
    for stored, event in changed:
        key, before = action_key(event.latest), action_key(stored.latest)
        if before == key and _meaning(stored.latest) == _meaning(event.latest):
            event = replace(event, count=event.count - stored.count)
        else:
            rewritten.add(before)
        added.setdefault(key, []).append(event)
    return ActionEvents(added, rewritten)


def recompute(events: Sequence[FoldedEvent]) -> Action | None:
    """Return the action that has these events alone; None without events."""
    return advance(None, events) if events else None


def advance(stored: Action | None, added: Sequence[FoldedEvent]) -> Action:
    """Return the action `stored`, or a new one, after at least one event in `added`.

    Each is the event as it is now, with the count of its new occurrences.
    """
    if stored is None:
        first = added[0].latest
        stored = Action(first.last_timestamp, first.name)
    # Local variables, as the loop runs for every event.
    last_seen, last_event, state, decided_at, decided_by, started, *counts, _, _ = astuple(stored)
    attempts, retries, warnings = counts
    deciding = None
    for event in added:
        latest = event.latest
        moment, name = latest.last_timestamp, latest.name
        if moment > last_seen or (moment == last_seen and name > last_event):
            last_seen, last_event = moment, name
        if latest.type == WARNING:
            warnings += event.count
        code, its_state, rank = _effect(latest.reason)
        if its_state is None:
            continue
        if code == START:
            attempts += event.count
            if started is None or moment > started:
                started = moment
        elif code == RETRY:
            retries += event.count
        # Equal where the deciding event recurs, perhaps with another message.
        if (
            decided_at is None
            or moment > decided_at
            or (moment == decided_at and (rank, name) >= (_RANK[state], decided_by))
        ):
            state, decided_at, decided_by, deciding = its_state, moment, name, latest
    if decided_by is not None and decided_at == last_seen:
        last_event = decided_by
    failure, fingerprint = stored.failure, stored.fingerprint
    if deciding is not None:
        failure, fingerprint = _failure(deciding) if state in _FAILURES else (None, None)
    return Action(
        last_seen,
        last_event,
        state,
        decided_at,
        decided_by,
        started,
        min(attempts, COUNT_MAX),
        min(retries, COUNT_MAX),
        min(warnings, COUNT_MAX),
        failure,
        fingerprint,
    )


def advance_all(
    events: ActionEvents,
    stored: Mapping[ActionKey, Action],
    remaining: Mapping[ActionKey, Sequence[FoldedEvent]],
) -> StateChanges:
    """Apply a batch to the `stored` actions; `remaining` holds all events of the rewritten ones."""
    actions: dict[ActionKey, tuple[Action | None, Action | None]] = {}
    elements: dict[ElementKey, list[StateChange]] = {}
    warnings: dict[Execution, int] = {}

    def change(key: ActionKey, before: Action | None, after: Action | None) -> None:
        actions[key] = before, after
        states = before.state if before else None, after.state if after else None
        if states[0] != states[1]:
            elements.setdefault(key[:5], []).append(states)
        more = (after.warnings if after else 0) - (before.warnings if before else 0)
        if more:
            warnings[key[:2]] = warnings.get(key[:2], 0) + more

    for key, added in events.added.items():
        if key not in events.rewritten:
            before = stored.get(key)
            change(key, before, advance(before, added))
    for key in events.rewritten:
        change(key, stored.get(key), recompute(remaining[key]))
    return StateChanges(actions, elements, warnings)


def element_deltas(
    changes: Mapping[ElementKey, Iterable[StateChange]], stored: Mapping[ActionKey, Action]
) -> dict[Execution, Tally]:
    """Return the change of each execution's elements by `changes` of their actions' states.

    `stored` holds at least all actions of these elements before the batch.
    """
    tallies = {key: [0] * len(STATES) for key in changes}
    for key, action in stored.items():
        tally = tallies.get(key[:5])
        if tally is not None:
            tally[_POSITION[action.state]] += 1
    deltas: dict[Execution, Tally] = {}
    for element, tally in tallies.items():
        before = _element_state(tally)
        for change in changes[element]:
            _move(tally, *change)
        delta = deltas.get(element[:2])
        if delta is None:
            delta = deltas[element[:2]] = [0] * len(STATES)
        _move(delta, before, _element_state(tally))
    return deltas


def _element_state(tally: Tally) -> str | None:
    for state, position in _ELEMENT_POSITIONS:
        if tally[position]:
            return state
    return None


def _move(tally: Tally, before: str | None, after: str | None) -> None:
    if before is not None:
        tally[_POSITION[before]] -= 1
    if after is not None:
        tally[_POSITION[after]] += 1


def _failure(deciding: Occurrence) -> tuple[str, str]:
    """Return the text and the fingerprint of a failure."""
    text = half(deciding.message, "en")
    fingerprint = failure_fingerprint(
        half(deciding.reason, "en"),
        text,
        execution_id=deciding.execution_id,
        object_name=deciding.object_name,
        elem_type=deciding.elem_type,
        elem_id=deciding.elem_id,
    )
    return text, fingerprint


def _meaning(latest: Occurrence) -> tuple[str | None, bool]:
    """Return what the count of an event is added to."""
    code, state, _ = _effect(latest.reason)
    return code if state else None, latest.type == WARNING


@lru_cache(maxsize=4096)
def _effect(reason: str) -> tuple[str, str | None, int]:
    """Return the code of a reason, the state that it gives, and its rank on a tie."""
    code = half(reason, "en")
    state = STATE_OF_REASON.get(code)
    return code, state, _RANK[state] if state else 0
