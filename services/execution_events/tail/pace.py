"""The pace of changes: at most one of an event in each interval."""

from collections import deque
from collections.abc import Iterator
from itertools import chain

from execution_events.tail.event import Key
from execution_events.tail.watched_list import Change


class Pace:
    """Changes that wait until `interval` seconds have passed since their event's last one.

    Changes that wait are merged: the result has the latest state and all added occurrences. It is
    two changes only for an event that is gone and has come again.
    """

    def __init__(self, interval: float = 1) -> None:
        self._interval = interval
        self._waiting: dict[Key, tuple[Change, ...]] = {}
        self._due: deque[tuple[float, Key]] = deque()

    def offer(self, change: Change, now: float) -> Change | None:
        """Return the change if it may be shown now; else it waits."""
        key = change.event.key
        if key in self._waiting:
            self._waiting[key] = _merged(self._waiting[key], change)
            return None
        self._begin(key, now)
        return change

    def due(self, now: float) -> Iterator[Change]:
        """Yield the changes whose time has come."""
        while self._due and self._due[0][0] <= now:
            key = self._due.popleft()[1]
            changes = self._waiting.pop(key)
            if changes:
                self._begin(key, now)
                yield from changes

    def rest(self) -> Iterator[Change]:
        """Yield all changes that wait, before the end."""
        yield from chain.from_iterable(self._waiting.values())
        self._waiting.clear()
        self._due.clear()

    @property
    def next_due(self) -> float:
        """The time at which `due` is to be called next; infinity if nothing waits."""
        return self._due[0][0] if self._due else float("inf")

    def _begin(self, key: Key, now: float) -> None:
        self._waiting[key] = ()
        self._due.append((now + self._interval, key))


def _merged(waiting: tuple[Change, ...], later: Change) -> tuple[Change, ...]:
    if not waiting:
        return (later,)
    *before, last = waiting
    match last.kind, later.kind:
        case _, "counted":
            return (*before, Change(last.kind, later.event, last.added + later.added))
        case "counted", "gone":
            return (later,)
        case _, "gone":
            # It came while it waited: nothing is known of it yet.
            return tuple(before)
    return (*waiting, later)
