"""The messages of PostgreSQL's protocol 3.0, as a proxy sees them pass."""

from collections.abc import Iterator
from enum import Enum

_STARTUP_MAJOR = 3
"""The protocol version in the first message that begins a session."""


class Moment(Enum):
    """A place of a session, inside a transaction whose first statement was executed.

    The message that leads to it comes from the server, which then waits for its client.
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

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the type and body of each message that `data` completes."""
        self._rest += data
        while (message := self._message()) is not None:
            yield message

    def _message(self) -> tuple[bytes, bytes] | None:
        if not self._from_client and not self._started and self._rest[:1] in (b"S", b"N"):
            # The one byte that answers a request for TLS; no session begins with such a type.
            self._rest = self._rest[1:]
        # Until the session begins, a client's messages have no type byte.
        prefix = 1 if self._started or not self._from_client else 0
        if len(self._rest) < prefix + 4:
            return None
        size = int.from_bytes(self._rest[prefix : prefix + 4])
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

    def sends(self, data: bytes) -> None:
        """The client sends `data`."""
        for kind, _ in self._sent.feed(data):
            self._executed |= kind == b"E" and self._in_transaction

    def receives(self, data: bytes) -> set[Moment]:
        """The moments that the server's `data` leads to."""
        found = set()
        for kind, body in self._received.feed(data):
            if kind == b"Z":
                self._in_transaction = body == b"T"
                self._executed &= self._in_transaction
            if self._executed:
                found |= _MOMENTS.get(kind, set())
        return found


_MOMENTS = {b"G": {Moment.COPY}, b"1": {Moment.PARSED}, b"Z": {Moment.EXECUTED}}
