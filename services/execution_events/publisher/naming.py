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
from collections import OrderedDict

import msgspec

from execution_events import events
from execution_events.events import Occurrence, event_name
from execution_events.publisher.event import Event, count_of, texts_of, timestamps_of

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

    An event recurs when nothing but its times and its count differs. The last `size` events are
    known; one that was forgotten gets a new name when it recurs.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._known: OrderedDict[_Identity, Occurrence] = OrderedDict()

    def occurrence(self, event: Event) -> Occurrence:
        """`event` as a record carries it: `wire.decode` takes what `wire.encode` makes of it.

        Raises `EventError` for an event outside the bounds, which is then not known either.
        """
        first, last = timestamps_of(event)
        count = count_of(event)
        # Texts that are known have been checked.
        known = self._recurrence(event) if event.name is None else texts_of(event, event.name)
        return msgspec.structs.replace(
            known, first_timestamp=first, last_timestamp=last, count=count
        )

    def _recurrence(self, event: Event) -> Occurrence:
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
                known = self._known.get(identity)
            except TypeError:  # not a string, which the check below says
                known = None
            if known is None:
                known = self._named(event, identity)
            else:
                self._known.move_to_end(identity)
        return known

    def _named(self, event: Event, identity: _Identity) -> Occurrence:
        unnamed = texts_of(event, name=".")
        name = event_name(_cut(unnamed.object_name), _process.next_nanoseconds())
        named = msgspec.structs.replace(unnamed, name=f"{name}-{_process.token}")
        self._known[identity] = named
        if len(self._known) > self._size:
            self._known.popitem(last=False)
        return named


def _cut(object_name: str) -> str:
    """`object_name`, as much of it as leaves room for the rest of a name."""
    most = events.NAME_MAX_BYTES - _SUFFIX_BYTES
    if len(object_name) <= most // 4:
        return object_name
    return object_name.encode()[:most].decode(errors="ignore")
