"""A list under watch: messages in, changes out."""

from typing import Literal, NamedTuple

from execution_events.tail.event import Event, Key, decode_event, decode_gone


class Message(NamedTuple):
    """A server-sent event of a watch; `has_id` marks the last message of a revision."""

    kind: str
    data: str
    has_id: bool


class Change(NamedTuple):
    """A change of an event; `added` are the occurrences that it adds to the changes before it.

    `present`: in the first list. `added`: new. `counted`: seen before. `gone`: no longer in the
    list, with its last known state.
    """

    kind: Literal["present", "added", "counted", "gone"]
    event: Event
    added: int


class WatchedList:
    """The events of a watched list, through broken connections and resets.

    A list that the reader sends again yields only its differences from the known one; a revision
    that it sends again yields no changes.
    """

    def __init__(self) -> None:
        self.is_complete = False
        """The first list has arrived whole."""
        self._events: dict[Key, Event] = {}
        self._incoming: dict[Key, Event] | None = None

    def reconnected(self) -> None:
        """Forget the part of a list that a broken connection has left."""
        self._incoming = None

    def take(self, message: Message) -> list[Change]:
        """Apply a message; raises `msgspec.MsgspecError` for a malformed one."""
        changes: list[Change] = []
        match message.kind:
            case "reset":
                self._incoming = {}
            case "gone":
                known = self._events.pop(decode_gone(message.data), None)
                if known is not None:
                    changes = [Change("gone", known, 0)]
            case "message":
                event = decode_event(message.data)
                if self._incoming is None:
                    changes = self._told(event)
                else:
                    self._incoming[event.key] = event
        if self._incoming is not None and message.has_id:
            return self._replaced(self._incoming)
        return changes

    def _replaced(self, events: dict[Key, Event]) -> list[Change]:
        self._incoming = None
        if not self.is_complete:
            self.is_complete = True
            self._events = events
            return [Change("present", event, event.count) for event in events.values()]
        gone = [event for key, event in self._events.items() if key not in events]
        for event in gone:
            del self._events[event.key]
        told = (change for event in events.values() for change in self._told(event))
        return [*(Change("gone", event, 0) for event in gone), *told]

    def _told(self, event: Event) -> list[Change]:
        known = self._events.get(event.key)
        self._events[event.key] = event
        if known is None:
            return [Change("added", event, event.count)]
        if known == event:
            return []
        # Counts never decrease, except of an event that was pruned and published again.
        if event.count < known.count:
            return [Change("gone", known, 0), Change("added", event, event.count)]
        return [Change("counted", event, event.count - known.count)]
