"""Client connections, with timeouts and limits that uvicorn lacks.

uvicorn alone keeps silent, half-sent and unread connections open indefinitely, and accepts any
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

from execution_events.web.errors import (
    ERROR_TEXTS,
    HEAD_MAX_BYTES,
    REFUSAL_REASONS,
    error_body,
    error_headers,
)

_LINGER = 2.0
"""Seconds for which input is read and dropped after a refusal.

Closing at once would reset the connection, and the client might never see the response."""
_PROGRESS_BYTES = 16 * 1024
"""Bytes that a client must read to count as reading."""


RefusalHook = Callable[[str], None]
"""Called with the reason of each refusal, a label of `metrics.ReaderMetrics.refused`."""


class ConnectionLimits(NamedTuple):
    """Limits on the connections of a server. Timeouts are seconds, kept to about one second."""

    connections: int = 4096
    """One more closes the connection that has waited longest for a request."""
    head_timeout: float = 10
    """From the connection, or its first byte, to the end of the request head."""
    idle_timeout: int = 75
    """From a response to the first byte of the next request."""
    write_timeout: float = 30
    """Without the client reading any of its pending response."""


class Connections:
    """The open connections of a server, and which of them wait for a request."""

    def __init__(self, limits: ConnectionLimits, on_refusal: RefusalHook) -> None:
        self.limits = limits
        self.on_refusal = on_refusal
        self.open: set[Connection] = set()
        # By the loop time at which the wait began, longest first: each is added at the end.
        self.waiting: dict[Connection, float] = {}

    def make_room(self) -> bool:
        """Return whether one more connection fits, closing a waiting one if necessary."""
        if len(self.open) < self.limits.connections:
            return True
        longest = next(iter(self.waiting), None)
        if longest is None:
            return False
        self.on_refusal("evicted")
        longest.abort()
        return True

    def enforce_timeouts(self) -> None:
        """Close every connection that exceeds a timeout."""
        now = asyncio.get_running_loop().time()
        for connection in list(self.open):
            connection.enforce_timeouts(now)


class Connection(H11Protocol):
    """A connection of uvicorn's, with limits."""

    def __init__(self, connections: Connections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._connections = connections
        self._unparsed = b""
        self._in_head = True
        self._refused_at: float | None = None
        # The largest number of unread bytes since the client last read, and when it did.
        self._unread = 0
        self._read_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        has_room = self._connections.make_room()
        self._connections.open.add(self)
        self._wait_for_request(in_head=True)
        self._read_at = self.loop.time()
        if not has_room:
            self._refuse(503)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unregister()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused_at is not None:
            return
        if self.conn.their_state is h11.IDLE and not self._in_head:
            self._wait_for_request(in_head=True)
        self._unparsed += data
        self._parse()

    def resume_writing(self) -> None:
        self._unread, self._read_at = 0, self.loop.time()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._wait_for_request(in_head=bool(self.conn.trailing_data[0]))
        self._parse()

    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed request; uvicorn calls this while it handles the parser's error."""
        error = sys.exc_info()[1]
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(hint if hint in ERROR_TEXTS else 400)

    def enforce_timeouts(self, now: float) -> None:
        """Refuse the request or close the connection if a timeout has passed."""
        limits = self._connections.limits
        unread = self._unread_bytes()
        if unread <= max(0, self._unread - _PROGRESS_BYTES):
            self._unread, self._read_at = unread, now
        self._unread = max(self._unread, unread)
        if unread and now - self._read_at > limits.write_timeout:
            self._connections.on_refusal("slow_reader")
            self.abort()
        elif self._refused_at is not None:
            if now - self._refused_at > _LINGER:
                self.abort()
        elif self._in_head and now - self._connections.waiting.get(self, now) > limits.head_timeout:
            self._refuse(408)

    def abort(self) -> None:
        """Close at once and discard pending output."""
        self._unregister()
        self.transport.abort()

    def _unread_bytes(self) -> int:
        """Return the bytes pending for the client; 0 if only the kernel's buffer holds any."""
        unread = self.transport.get_write_buffer_size()
        if unread:
            # The kernel accepts more only after a part of its buffer, of megabytes, is free: our
            # own buffer can stay the same for a long time although the client reads.
            descriptor = self.transport.get_extra_info("socket").fileno()
            with contextlib.suppress(OSError, ValueError):
                unread += int.from_bytes(
                    fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder
                )
        return unread

    def _parse(self) -> None:
        # In pieces: h11 limits only an incomplete head, and accepts one of any size that arrives
        # in a single piece.
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
        # A refused connection stays in `waiting`, so that it can be closed to make room.
        if self.conn.their_state is not h11.IDLE and self._refused_at is None:
            self._connections.waiting.pop(self, None)
            self._in_head = False

    def _wait_for_request(self, *, in_head: bool) -> None:
        self._in_head = in_head
        self._connections.waiting.pop(self, None)
        self._connections.waiting[self] = self.loop.time()

    def _unregister(self) -> None:
        self._connections.open.discard(self)
        self._connections.waiting.pop(self, None)

    def _refuse(self, status: int) -> None:
        """Send an error, read no further request, and close."""
        self._connections.on_refusal(REFUSAL_REASONS.get(status, "malformed"))
        is_silent = status == 408 and not self.conn.trailing_data[0]
        is_responding = self.cycle is not None and not self.cycle.response_complete
        if is_silent or (is_responding and self.cycle.response_started):
            self.abort()
            return
        self._refused_at = self.loop.time()
        self._unparsed = b""
        if is_responding:
            # Discards what the application still sends.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = error_body(status, ERROR_TEXTS[status])
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        head += [name + b": " + value for name, value in self.server_state.default_headers]
        head += [name + b": " + value for name, value in error_headers(status, body)]
        self.transport.write(b"\r\n".join([*head, b"", body]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
