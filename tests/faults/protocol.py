"""A parser of PostgreSQL's protocol 3.0 for the proxy."""

from collections.abc import Iterator
from enum import Enum

_STARTUP_MAJOR = 3
"""Major protocol version in the startup message."""


class Moment(Enum):
    """A point in a session's transaction, after its first statement was executed.

    The server waits for its client at this point while the proxy holds one message: the client's
    CopyDone, or the server's response. asyncpg sends a whole COPY at once.
    """

    COPY = "inside COPY FROM STDIN"
    PARSED = "between Parse and Bind"
    EXECUTED = "between two statements"


class Messages:
    """A splitter of a stream, received in arbitrary pieces, into messages."""

    def __init__(self, *, from_client: bool) -> None:
        self._rest = b""
        self._from_client = from_client
        self._started = False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
        """Yield each message that `data` completes: type, body, and its start in `data`.

        The start is 0 if the message began in earlier data.
        """
        self._rest += data
        while True:
            begin = len(data) - len(self._rest)
            if (message := self._message()) is None:
                return
            yield *message, max(begin, 0)

    def _message(self) -> tuple[bytes, bytes] | None:
        if not self._from_client and not self._started and self._rest[:1] in (b"S", b"N"):
            # The one-byte reply to an SSLRequest; no session begins with a message of this type.
            self._rest = self._rest[1:]
        # Before the session begins, a client's messages have no type byte.
        prefix = 1 if self._started or not self._from_client else 0
        if len(self._rest) < prefix + 4:
            return None
        # No message is shorter; data of another protocol must not stop the parser.
        size = max(4, int.from_bytes(self._rest[prefix : prefix + 4]))
        if len(self._rest) < prefix + size:
            return None
        kind, body = self._rest[:prefix], self._rest[prefix + 4 : prefix + size]
        self._rest = self._rest[prefix + size :]
        if not self._started:
            self._started = not self._from_client or int.from_bytes(body[:2]) == _STARTUP_MAJOR
        return kind, body


class Session:
    """Both directions of one session, and the moments it reaches."""

    def __init__(self) -> None:
        self._sent = Messages(from_client=True)
        self._received = Messages(from_client=False)
        self._in_transaction = False
        self._executed = False

    def sends(self, data: bytes) -> dict[Moment, int]:
        """Return the moments that the client's `data` passes, and where in it each begins."""
        found: dict[Moment, int] = {}
        for kind, _, begin in self._sent.feed(data):
            self._executed |= kind == b"E" and self._in_transaction
            if kind == b"c" and self._executed:
                found.setdefault(Moment.COPY, begin)
        return found

    def receives(self, data: bytes) -> dict[Moment, int]:
        """Return the moments that the server's `data` passes, and where in it each begins."""
        found: dict[Moment, int] = {}
        for kind, body, begin in self._received.feed(data):
            if kind == b"Z":
                self._in_transaction = body == b"T"
                self._executed &= self._in_transaction
            if self._executed and kind in _ANSWERS:
                found.setdefault(_ANSWERS[kind], begin)
        return found


_ANSWERS = {b"1": Moment.PARSED, b"Z": Moment.EXECUTED}
