"""Executions as the transactions of one connection have left them.

A batch need not read what the batch before it has written: recurrences and states are of executions
that run now.
"""

import msgspec

from execution_events.projection.fold import FoldedEvent
from execution_events.projection.states import Actions, ElementKey, Execution

_LIMIT = 48 * 2**20
"""Bytes of the known events with their actions: some 50,000 events with short messages."""
_EVENT_BYTES = 800
"""Memory of an event that recurs and its share of an action, besides the message; other texts are
short."""
_MESSAGE_CHARACTER_BYTES = 4
"""Memory of a character at most, and of most with their copy as the text of a failure."""


class KnownExecution(msgspec.Struct):
    """The known part of an execution at its `revision`.

    `events` are by name, with so many `characters` in their messages; None is an event that is
    stored and not in memory, as it has not recurred. `elements` holds all actions of each known
    element. If `whole`, what is not here does not exist.
    """

    whole: bool
    revision: int = 0
    events: dict[str, FoldedEvent | None] = {}
    elements: dict[ElementKey, Actions] = {}
    characters: int = 0

    @property
    def size(self) -> int:
        """About its bytes of memory."""
        return len(self.events) * _EVENT_BYTES + self.characters * _MESSAGE_CHARACTER_BYTES


class KnownExecutions:
    """The executions that one connection wrote last, in bounded memory.

    Every writer locks an execution and raises its revision, which never repeats. So what was known
    at the revision before the caller's is true until the caller changes it.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._executions: dict[Execution, KnownExecution] = {}
        self._size = 0

    def take(self, key: Execution, previous: int | None) -> KnownExecution:
        """Remove and return what is known of a locked execution.

        `previous` is its stored revision, None if it has just begun. The caller may change what it
        takes, and gives it back by `put` once its transaction is committed.
        """
        known = self._executions.pop(key, None)
        if known is not None:
            self._size -= known.size
            if known.revision == previous:
                return known
        return KnownExecution(whole=previous is None)

    def put(self, key: Execution, known: KnownExecution) -> None:
        """Remember an execution as a committed transaction has left it; forget the oldest."""
        self._executions[key] = known
        self._size += known.size
        while self._size > self._limit:
            oldest = next(iter(self._executions))
            self._size -= self._executions.pop(oldest).size
