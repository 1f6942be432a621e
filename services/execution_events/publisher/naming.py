"""Names of events: the same for all recurrences of an event, unique among different events.

A name is `<object>.<16 hex digits>-<8 hex digits>`: the object, which is everything before the last
dot; the Unix nanoseconds of the first report; and a random number of this process. Within a process
no two names have the same nanoseconds, even if the clock is set back. Two processes, on any hosts,
give the same name to different events only if they report the same object of one execution at the
same nanosecond and have drawn the same of 2^32 numbers.
"""

import os
import threading
import time

import msgspec

from execution_events import events
from execution_events.events import Occurrence, event_name
from execution_events.publisher.event import Event, count_of, occurrence_of, timestamps_of

_Identity = tuple[str, ...]

_SUFFIX_BYTES = len(".") + 16 + len("-") + 8


class _Process:
    """The clock and random number of all names of this process; a forked child gets its own."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        # Another thread may have held the lock during the fork; the child has no such thread.
        self.lock = threading.Lock()
        self.token = os.urandom(4).hex()
        self.latest = 0

    def next_nanoseconds(self) -> int:
        """Return a time later than all before; the caller holds the lock."""
        self.latest = max(time.time_ns(), self.latest + 1)
        return self.latest


_process = _Process()
os.register_at_fork(after_in_child=_process.renew)


class EventNamer:
    """A converter of events to occurrences: it checks, names and dates them. Thread-safe.

    Two events are recurrences if they differ only in times and count. The namer remembers at least
    the last `size` events and at most twice as many; a forgotten event gets a new name when it
    recurs.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        # Two generations: when the recent one is full, it becomes the old one.
        self._recent: dict[_Identity, Occurrence] = {}
        self._old: dict[_Identity, Occurrence] = {}

    def occurrence(self, event: Event) -> Occurrence:
        """Return the occurrence of `event`, which `wire.encode` and `wire.decode` reproduce.

        Raises `EventError` for an event outside the bounds, and does not remember it.
        """
        first, last = timestamps_of(event)
        if event.name is not None:
            return occurrence_of(event, event.name, first, last)
        namespace = event.namespace
        identity = (
            event.execution_id,
            namespace,
            namespace if event.object_namespace is None else event.object_namespace,
            event.object_name,
            event.reason,
            event.message,
            event.type,
            event.elem_type,
            event.elem_id,
            event.action_name,
        )
        with _process.lock:
            try:
                known = self._recent.get(identity)
                if known is None and (known := self._old.get(identity)) is not None:
                    self._remember(identity, known)
            except TypeError:  # not a string; the check below raises
                known = None
            if known is None:
                occurrence = occurrence_of(event, _new_name(event), first, last)
                self._remember(identity, occurrence)
                return occurrence
        # The texts of a known event have been checked.
        return msgspec.structs.replace(
            known, first_timestamp=first, last_timestamp=last, count=count_of(event)
        )

    def _remember(self, identity: _Identity, known: Occurrence) -> None:
        if len(self._recent) >= self._size:
            self._old, self._recent = self._recent, {}
        self._recent[identity] = known


def _new_name(event: Event) -> str:
    object_name = event.object_name
    if not isinstance(object_name, str) or not object_name:
        return "."  # The check of the object's name raises.
    nanoseconds = _process.next_nanoseconds()
    return f"{event_name(_cut(object_name), nanoseconds)}-{_process.token}"


def _cut(object_name: str) -> str:
    """Return `object_name`, cut so that the whole name stays within its limit."""
    limit = events.NAME_MAX_BYTES - _SUFFIX_BYTES
    if len(object_name) <= limit // 4:
        return object_name
    # A name that UTF-8 cannot encode is refused by the check of the object's name.
    return object_name.encode(errors="replace")[:limit].decode(errors="ignore")
