"""The states of actions and elements, derived from their events.

The rules are those of `ops.actions_v1` and `ops.elements_v1`.
"""

from collections import Counter
from datetime import datetime, timedelta
from typing import Final, Literal

from execution_events.tail.event import Event, Key
from execution_events.tail.watched_list import Change

State = Literal["running", "succeeded", "failed", "timed_out", "cancelled", "unknown"]

STATES_BY_REASON: Final[dict[str, State]] = {
    "ActionStart": "running",
    "ActionRetry": "running",
    "SuccessfulFinish": "succeeded",
    "ActionFailed": "failed",
    "ActionCancelled": "cancelled",
    "ActionTimeout": "timed_out",
}
_START = "ActionStart"
_TIES: Final = ("running", "succeeded", "cancelled", "timed_out", "failed")
"""Of several events with the same last timestamp, the last of these decides an action's state."""
_ELEMENT_ORDER: Final[tuple[State, ...]] = (
    "running",
    "failed",
    "timed_out",
    "cancelled",
    "succeeded",
    "unknown",
)
"""An element has the first of these states that any of its actions has."""

_ElementKey = tuple[str, str, str, str]
"""(namespace, object name, element type, element id)"""


class Elements:
    """The elements of an execution and their states; each change costs the same."""

    def __init__(self) -> None:
        self.counts: Counter[State] = Counter()
        """Elements by state."""
        self._elements: dict[_ElementKey, _Element] = {}
        self._events: dict[Key, Event] = {}

    def apply(self, change: Change) -> None:
        """Apply a change of an event."""
        event = change.event
        known = self._events.pop(event.key, None)
        is_gone = change.kind == "gone"
        if known is not None and (is_gone or _has_moved(known, event)):
            self._remove(known)
        if not is_gone:
            self._events[event.key] = event
            self._put(event)

    @property
    def total(self) -> int:
        return len(self._elements)

    @property
    def has_ended(self) -> bool:
        """An element has ended and none runs."""
        return not self.counts["running"] and any(
            self.counts[state] for state in _ELEMENT_ORDER[1:-1]
        )

    @property
    def has_failed(self) -> bool:
        """An element stands failed or timed out."""
        return self.counts["failed"] + self.counts["timed_out"] > 0

    def running(self) -> list[str]:
        """Return the ids of the running elements, in the order of their first event."""
        return [key[3] for key, element in self._elements.items() if element.state == "running"]

    def duration(self, event: Event) -> timedelta | None:
        """Return the time from the action's latest start to this event, if it ended the action."""
        if STATES_BY_REASON.get(event.reason_code, "running") == "running":
            return None
        element = self._elements.get(_element_key(event))
        action = element.actions.get(event.action_name) if element else None
        if action is None or not action.started or action.started > event.last_timestamp:
            return None
        return _time(event.last_timestamp) - _time(action.started)

    def _put(self, event: Event) -> None:
        key = _element_key(event)
        element = self._elements.get(key)
        if element is None:
            element = self._elements[key] = _Element()
            self.counts["unknown"] += 1
        before = element.state
        element.put(event)
        self._count(before, element.state)

    def _remove(self, event: Event) -> None:
        key = _element_key(event)
        element = self._elements[key]
        before = element.state
        element.remove(event)
        if element.actions:
            self._count(before, element.state)
        else:
            del self._elements[key]
            self.counts[before] -= 1

    def _count(self, before: State, after: State) -> None:
        self.counts[before] -= 1
        self.counts[after] += 1


class _Element:
    def __init__(self) -> None:
        self.actions: dict[str, _Action] = {}
        self._counts: Counter[State] = Counter()

    @property
    def state(self) -> State:
        return next((state for state in _ELEMENT_ORDER if self._counts[state]), "unknown")

    def put(self, event: Event) -> None:
        action = self.actions.get(event.action_name)
        if action is None:
            action = self.actions[event.action_name] = _Action()
            self._counts["unknown"] += 1
        self._counts[action.state] -= 1
        action.put(event)
        self._counts[action.state] += 1

    def remove(self, event: Event) -> None:
        action = self.actions[event.action_name]
        self._counts[action.state] -= 1
        if action.remove(event):
            self._counts[action.state] += 1
        else:
            del self.actions[event.action_name]


class _Action:
    """The events of an action; `started` is the last timestamp of its latest start, or empty."""

    def __init__(self) -> None:
        self.state: State = "unknown"
        self.started = ""
        self._decided = ("", -1)
        self._events: dict[Key, Event] = {}

    def put(self, event: Event) -> None:
        self._events[event.key] = event
        self._apply(event)

    def remove(self, event: Event) -> bool:
        """Remove an event; return whether others are left."""
        del self._events[event.key]
        self.state, self.started, self._decided = "unknown", "", ("", -1)
        for other in self._events.values():
            self._apply(other)
        return bool(self._events)

    def _apply(self, event: Event) -> None:
        # The last timestamp of an event never decreases, so the greatest never has to be undone.
        code, last = event.reason_code, event.last_timestamp
        state = STATES_BY_REASON.get(code)
        if state is None:
            return
        decided = (last, _TIES.index(state))
        if decided >= self._decided:
            self._decided, self.state = decided, state
        if code == _START:
            self.started = max(self.started, last)


def _element_key(event: Event) -> _ElementKey:
    return event.metadata.namespace, event.involved_object.name, event.elem_type, event.elem_id


def _has_moved(known: Event, event: Event) -> bool:
    """Return whether a change takes the event to another action, or decides another state."""
    return (
        _element_key(known) != _element_key(event)
        or known.action_name != event.action_name
        or known.reason != event.reason
        or known.last_timestamp > event.last_timestamp
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
