"""The states of actions, elements and executions, derived from their events.

An action is kept as the result of its events alone, so it equals a recomputation from them at every
revision, in whatever order and batches they arrived. What a batch costs depends on its events, not
on the size of their executions.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache

import msgspec
from msgspec.structs import astuple

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
_ELEMENT_RANK = {state: rank for rank, state in enumerate(ELEMENT_PRECEDENCE)}

Execution = tuple[str, str]
"""(execution id, namespace)"""
ElementKey = tuple[str, str, str, str, str]
"""(execution id, namespace, object name, element type, element)"""
Tally = list[int]
"""The number of elements in each of `STATES`, in their order; of a change it may be negative."""


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


Actions = Mapping[str, Action]
"""All actions of an element, by name."""


class ActionEvents(msgspec.Struct, frozen=True):
    """The events of a batch, by the element and the name of the action that they are in now.

    Each in `added` is the event as it is now, with the count of its new occurrences. An action in
    `rewritten` has lost an event, or an event of it has another meaning now; it is recomputed from
    all of its events. `added` has every element that may change.
    """

    added: dict[ElementKey, dict[str, list[FoldedEvent]]] = {}
    rewritten: dict[ElementKey, set[str]] = {}

    def add(self, event: FoldedEvent) -> ElementKey:
        """Add an event that its action did not have, or the new occurrences of one that it had.

        Returns the key of its element.
        """
        latest = event.latest
        key = element_key(latest)
        actions = self.added.get(key)
        if actions is None:
            actions = self.added[key] = {}
        events = actions.get(latest.action_name)
        if events is None:
            actions[latest.action_name] = [event]
        else:
            events.append(event)
        return key

    def change(self, stored: FoldedEvent, event: FoldedEvent) -> None:
        """Add an event as it was stored and as it is now."""
        before, now = stored.latest, event.latest
        if before is now or _is_same(before, now):
            added = FoldedEvent(
                now, event.count - stored.count, event.first_timestamp, event.list_position
            )
            self.add(added)
        else:
            element = element_key(before)
            self.added.setdefault(element, {})
            self.rewritten.setdefault(element, set()).add(before.action_name)
            self.add(event)


ActionChange = tuple[ElementKey, str, Action | None, Action | None]
"""The element and the name of an action, and the action before and after; None without events."""


class StateChanges(msgspec.Struct, frozen=True):
    """The effect of a batch on states.

    `elements` holds all actions of each element of the batch after it. `tallies` holds the change
    of each execution's elements, and `warnings` that of its warnings unless it is 0; it may be
    negative.
    """

    actions: list[ActionChange] = []
    elements: dict[ElementKey, Actions] = {}
    tallies: dict[Execution, Tally] = {}
    warnings: dict[Execution, int] = {}


def element_key(latest: Occurrence) -> ElementKey:
    """Return the key of the element that an event with the texts of `latest` is of."""
    return (
        latest.execution_id,
        latest.namespace,
        latest.object_name,
        latest.elem_type,
        latest.elem_id,
    )


def recompute(events: Sequence[FoldedEvent]) -> Action | None:
    """Return the action that has these events alone; None without events."""
    return advance(None, events) if events else None


def advance(stored: Action | None, added: Sequence[FoldedEvent]) -> Action:
    """Return the action `stored`, or a new one, after at least one event in `added`.

    Each is the event as it is now, with the count of its new occurrences.
    """
    # Local variables, and no call of min(), as this runs for every action.
    state, failure, fingerprint = "unknown", None, None
    decided_at = decided_by = started = None
    attempts = retries = warnings = 0
    if stored is None:
        first = added[0].latest
        last_seen, last_event = first.last_timestamp, first.name
    else:
        last_seen, last_event, state, decided_at, decided_by, started, *rest = astuple(stored)
        attempts, retries, warnings, failure, fingerprint = rest
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
    if deciding is not None:
        failure, fingerprint = _failure(deciding) if state in _FAILURES else (None, None)
    return Action(
        last_seen,
        last_event,
        state,
        decided_at,
        decided_by,
        started,
        attempts if attempts < COUNT_MAX else COUNT_MAX,
        retries if retries < COUNT_MAX else COUNT_MAX,
        warnings if warnings < COUNT_MAX else COUNT_MAX,
        failure,
        fingerprint,
    )


def advance_all(
    events: ActionEvents,
    stored: Mapping[ElementKey, Actions],
    remaining: Mapping[tuple[ElementKey, str], Sequence[FoldedEvent]],
) -> StateChanges:
    """Apply a batch to the `stored` actions of its elements.

    `remaining` holds all events of the rewritten actions, by element and name.
    """
    changes = StateChanges()
    for element, added in events.added.items():
        before = stored.get(element) or {}
        after = dict(before)
        rewritten = events.rewritten.get(element, ()) if events.rewritten else ()
        for name, its_events in added.items():
            if name not in rewritten:
                was = before.get(name)
                now = after[name] = advance(was, its_events)
                changes.actions.append((element, name, was, now))
                if now.warnings:
                    _add_warnings(changes, element, now.warnings - (was.warnings if was else 0))
        for name in rewritten:
            was, recomputed = before.get(name), recompute(remaining[element, name])
            after.pop(name, None)
            if recomputed is not None:
                after[name] = recomputed
            changes.actions.append((element, name, was, recomputed))
            warnings = recomputed.warnings if recomputed else 0
            _add_warnings(changes, element, warnings - (was.warnings if was else 0))
        changes.elements[element] = after
        _add_states(changes, element, _element_state(before), _element_state(after))
    return changes


def _add_warnings(changes: StateChanges, element: ElementKey, more: int) -> None:
    if more:
        execution = element[:2]
        changes.warnings[execution] = changes.warnings.get(execution, 0) + more


def _add_states(
    changes: StateChanges, element: ElementKey, before: str | None, after: str | None
) -> None:
    if before != after:
        tally = changes.tallies.get(element[:2])
        if tally is None:
            tally = changes.tallies[element[:2]] = [0] * len(STATES)
        if before is not None:
            tally[_POSITION[before]] -= 1
        if after is not None:
            tally[_POSITION[after]] += 1


def _element_state(actions: Actions) -> str | None:
    """Return the state of an element by all of its actions; None without any."""
    first = len(ELEMENT_PRECEDENCE)
    for action in actions.values():
        rank = _ELEMENT_RANK[action.state]
        if rank < first:
            first = rank
    return ELEMENT_PRECEDENCE[first] if actions else None


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


def _is_same(before: Occurrence, now: Occurrence) -> bool:
    """Return True if an event is still in the same action and its count means the same."""
    return (
        before.elem_id == now.elem_id
        and before.action_name == now.action_name
        and before.object_name == now.object_name
        and before.elem_type == now.elem_type
        and (before.type == WARNING) == (now.type == WARNING)
        and (before.reason == now.reason or _meaning(before) == _meaning(now))
    )


def _meaning(latest: Occurrence) -> str | None:
    """Return the code of a reason that decides a state, None for any other."""
    code, state, _ = _effect(latest.reason)
    return code if state else None


@lru_cache(maxsize=4096)
def _effect(reason: str) -> tuple[str, str | None, int]:
    """Return the code of a reason, the state that it gives, and its rank on a tie."""
    code = half(reason, "en")
    state = STATE_OF_REASON.get(code)
    return code, state, _RANK[state] if state else 0
