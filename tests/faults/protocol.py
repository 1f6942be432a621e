"""The messages of PostgreSQL's protocol 3.0, as a proxy sees them pass."""

from collections.abc import Iterator
from enum import Enum

_STARTUP_MAJOR = 3
"""The protocol version in the first message that begins a session."""


class Moment(Enum):
    """A place of a session, inside a transaction whose first statement was executed.

    The server waits for its client there, as long as one message is kept back: the client's end of
    a COPY, or what the server answers. asyncpg sends a whole COPY at once.
    """

    COPY = "inside COPY FROM STDIN"
    PARSED = "between Parse and Bind"
    EXECUTED = "between two statements"


class Messages:
    """Splits a stream into messages, however it is cut up."""

    def __init__(self, *, from_client: bool) -> None:
        self._rest = b""
        self._from_client = from_client
        self._started = False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
        """Yield each message that `data` completes: type, body, and where in `data` it begins.

        One that began earlier begins at 0.
        """
        self._rest += data
        while True:
            begin = len(data) - len(self._rest)
            if (message := self._message()) is None:
                return
            yield *message, max(begin, 0)

    def _message(self) -> tuple[bytes, bytes] | None:
        if not self._from_client and not self._started and self._rest[:1] in (b"S", b"N"):
            # The one byte that answers a request for TLS; no session begins with such a type.
            self._rest = self._rest[1:]
        # Until the session begins, a client's messages have no type byte.
        prefix = 1 if self._started or not self._from_client else 0
        if len(self._rest) < prefix + 4:
            return None
        # No message is shorter; other protocols pass here as well, and must not hold it up.
        size = max(4, int.from_bytes(self._rest[prefix : prefix + 4]))
        if len(self._rest) < prefix + size:
            return None
        kind, body = self._rest[:prefix], self._rest[prefix + 4 : prefix + size]
        self._rest = self._rest[prefix + size :]
        if not self._started:
            self._started = not self._from_client or int.from_bytes(body[:2]) == _STARTUP_MAJOR
        return kind, body


class Session:
    """Both directions of one session, and the moments that it comes to."""

    def __init__(self) -> None:
        self._sent = Messages(from_client=True)
        self._received = Messages(from_client=False)
        self._in_transaction = False
        self._executed = False

    def sends(self, data: bytes) -> dict[Moment, int]:
        """Where in the client's `data` to stop for each moment that it leads past."""
        found: dict[Moment, int] = {}
        for kind, _, begin in self._sent.feed(data):
            self._executed |= kind == b"E" and self._in_transaction
            if kind == b"c" and self._executed:
                found.setdefault(Moment.COPY, begin)
        return found

    def receives(self, data: bytes) -> dict[Moment, int]:
        """Where in the server's `data` to stop for each moment that it leads past."""
        found: dict[Moment, int] = {}
        for kind, body, begin in self._received.feed(data):
            if kind == b"Z":
                self._in_transaction = body == b"T"
                self._executed &= self._in_transaction
            if self._executed and kind in _ANSWERS:
                found.setdefault(_ANSWERS[kind], begin)
        return found


_ANSWERS = {b"1": Moment.PARSED, b"Z": Moment.EXECUTED}
