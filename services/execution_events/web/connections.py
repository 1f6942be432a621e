"""Connections of clients, with limits that uvicorn does not have.

uvicorn by itself keeps silent, half-sent and unread connections for ever, and takes heads of any
number of headers.
"""

import asyncio
import contextlib
import fcntl
import sys
import termios
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from execution_events.web.errors import HEAD_MAX_BYTES, PHRASES, REASONS, error_body, error_headers

_LINGER = 2.0
"""Seconds in which the rest of a refused request is read and dropped.

To close at once would reset the connection, and the client might never see the answer."""
_PROGRESS = 16 * 1024
"""Bytes that a client must take to count as reading."""


Refused = Callable[[str], None]
"""Is told the reason of each refusal; see `management.ReaderMetrics.refused`."""


class Bounds(NamedTuple):
    """What one client may take of a server. Times are seconds, kept to about one second."""

    connections: int = 4096
    """A further one takes the place of the one that has been without a request the longest."""
    head: float = 10
    """From the connection, or the first byte, to the end of the request's head."""
    idle: int = 75
    """Between an answer and the first byte of the next request."""
    write: float = 30
    """Without the client reading of what waits for it."""


class Connections:
    """All connections of a server, and those of them that are without a request."""

    def __init__(self, bounds: Bounds, refused: Refused) -> None:
        self.bounds = bounds
        self.refused = refused
        self.all: set[Connection] = set()
        # Since when, on the loop's clock; the longest first, as each is put at the end.
        self.waiting: dict[Connection, float] = {}

    def make_room(self) -> bool:
        """Whether there is room for one more, if need be by closing one."""
        if len(self.all) < self.bounds.connections:
            return True
        longest = next(iter(self.waiting), None)
        if longest is None:
            return False
        self.refused("evicted")
        longest.drop()
        return True

    def sweep(self) -> None:
        """Close what has been waited for long enough."""
        now = asyncio.get_running_loop().time()
        for connection in list(self.all):
            connection.check(now)


class Connection(H11Protocol):
    """uvicorn's connection with bounds."""

    def __init__(self, connections: Connections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._all = connections
        self._unparsed = b""
        self._in_head = True
        self._refused_at: float | None = None
        # The most bytes that waited for the client since it last read of them, and that time.
        self._unsent = 0
        self._read_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        has_room = self._all.make_room()
        self._all.all.add(self)
        self._wait(in_head=True)
        self._read_at = self.loop.time()
        if not has_room:
            self._refuse(503)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused_at is not None:
            return
        if self.conn.their_state is h11.IDLE and not self._in_head:
            self._wait(in_head=True)
        # In pieces: h11 looks at the size of an unfinished head alone, and would take any that
        # comes in one piece.
        self._unparsed += data
        self._parse()

    def resume_writing(self) -> None:
        self._unsent, self._read_at = 0, self.loop.time()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._wait(in_head=bool(self.conn.trailing_data[0]))
        self._parse()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn where it handles the error of the parser."""
        error = sys.exc_info()[1]
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(hint if hint in PHRASES else 400)

    def check(self, now: float) -> None:
        """Close the connection where a bound of time is reached."""
        bounds = self._all.bounds
        unsent = self._unread()
        if unsent <= max(0, self._unsent - _PROGRESS):
            self._unsent, self._read_at = unsent, now
        self._unsent = max(self._unsent, unsent)
        if unsent and now - self._read_at > bounds.write:
            self._all.refused("slow_reader")
            self.drop()
        elif self._refused_at is not None:
            if now - self._refused_at > _LINGER:
                self.drop()
        elif self._in_head and now - self._all.waiting.get(self, now) > bounds.head:
            self._refuse(408)

    def drop(self) -> None:
        """Close at once, whatever waits to be sent."""
        self._forget()
        self.transport.abort()

    def _unread(self) -> int:
        """Bytes that wait for the client; 0 where the system alone has them."""
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            # The system takes more only once it is rid of a part of what it has, of megabytes: a
            # client may read for long without a change of our own buffer.
            descriptor = self.transport.get_extra_info("socket").fileno()
            with contextlib.suppress(OSError, ValueError):
                unsent += int.from_bytes(
                    fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder
                )
        return unsent

    def _parse(self) -> None:
        while (
            self._unparsed
            and self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
            and self._refused_at is None
            and not self.transport.is_closing()
        ):
            piece, self._unparsed = (
                self._unparsed[:HEAD_MAX_BYTES],
                self._unparsed[HEAD_MAX_BYTES:],
            )
            super().data_received(piece)
        if self._unparsed:
            self.flow.pause_reading()
        # One that is refused stays where it can make room.
        if self.conn.their_state is not h11.IDLE and self._refused_at is None:
            self._all.waiting.pop(self, None)
            self._in_head = False

    def _wait(self, *, in_head: bool) -> None:
        self._in_head = in_head
        self._all.waiting.pop(self, None)
        self._all.waiting[self] = self.loop.time()

    def _forget(self) -> None:
        self._all.all.discard(self)
        self._all.waiting.pop(self, None)

    def _refuse(self, status: int) -> None:
        """Answer with an error, read no further request, and close."""
        self._all.refused(REASONS.get(status, "malformed"))
        silent = status == 408 and not self.conn.trailing_data[0]
        answering = self.cycle is not None and not self.cycle.response_complete
        if silent or (answering and self.cycle.response_started):
            self.drop()
            return
        self._refused_at = self.loop.time()
        self._unparsed = b""
        if answering:
            # What the application still sends is dropped.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = error_body(status, PHRASES[status])
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        head += [name + b": " + value for name, value in self.server_state.default_headers]
        head += [name + b": " + value for name, value in error_headers(status, body)]
        self.transport.write(b"\r\n".join([*head, b"", body]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
