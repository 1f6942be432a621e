"""Names of events: one for all recurrences, and never one for two different events.

A name is `<object>.<16 hex digits>-<8 hex digits>`: the object, as all before the last dot; the
Unix nanoseconds of the first report; and a number that this process has drawn at random. Within a
process no two names have the same nanoseconds, whatever the clock does. Two processes, on one host
or on many, give the same name to different events only when they report the same object of one
execution at the same nanosecond and have drawn the same of 2^32 numbers.
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
    """What all names of this process share. A forked child is a process of its own."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        # Another thread may hold the lock at the moment of the fork; in the child it is no more.
        self.lock = threading.Lock()
        self.token = os.urandom(4).hex()
        self.latest = 0

    def next_nanoseconds(self) -> int:
        """Later than all before; call it with the lock."""
        self.latest = max(time.time_ns(), self.latest + 1)
        return self.latest


_process = _Process()
os.register_at_fork(after_in_child=_process.renew)


class Names:
    """Makes occurrences of events: checks, names and dates them. Safe to use from many threads.

    An event recurs when nothing but its times and its count differs. At least the last `size`
    events are known, and twice as many at most; one that was forgotten gets a new name when it
    recurs.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        # What was used lately, and what was not since `_lately` was full the last time.
        self._lately: dict[_Identity, Occurrence] = {}
        self._before: dict[_Identity, Occurrence] = {}

    def occurrence(self, event: Event) -> Occurrence:
        """`event` as a record carries it: `wire.decode` takes what `wire.encode` makes of it.

        Raises `EventError` for an event outside the bounds, which is then not known either.
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
                known = self._lately.get(identity)
                if known is None and (known := self._before.get(identity)) is not None:
                    self._remember(identity, known)
            except TypeError:  # not a string, which the check below says
                known = None
            if known is None:
                made = occurrence_of(event, _name_of(event), first, last)
                self._remember(identity, made)
                return made
        # Texts that are known have been checked.
        return msgspec.structs.replace(
            known, first_timestamp=first, last_timestamp=last, count=count_of(event)
        )

    def _remember(self, identity: _Identity, known: Occurrence) -> None:
        if len(self._lately) >= self._size:
            self._before, self._lately = self._lately, {}
        self._lately[identity] = known


def _name_of(event: Event) -> str:
    object_name = event.object_name
    if not isinstance(object_name, str) or not object_name:
        return "."  # The check of the object's name will say it.
    nanoseconds = _process.next_nanoseconds()
    return f"{event_name(_cut(object_name), nanoseconds)}-{_process.token}"


def _cut(object_name: str) -> str:
    """`object_name`, as much of it as leaves room for the rest of a name."""
    most = events.NAME_MAX_BYTES - _SUFFIX_BYTES
    if len(object_name) <= most // 4:
        return object_name
    # What UTF-8 cannot write is refused with the object's name.
    return object_name.encode(errors="replace")[:most].decode(errors="ignore")
