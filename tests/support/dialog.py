"""A proxy that records the messages between a service and PostgreSQL (protocol version 3)."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.support.consumers import until

_PROBE = b"execution-events probe"
"""Its statements are periodic and belong to no request, so they are not recorded."""


class DialogMessage(NamedTuple):
    """An executed statement, or a row, an end or an error from the server."""

    kind: str
    content: str | bytes


class Dialog:
    """The messages of all connections of one service to its database.

    A statement is recorded as its text, without arguments, each time that it is executed, whether
    or not it had been prepared before.
    """

    def __init__(self) -> None:
        self._messages: list[DialogMessage] = []
        self._connections: set[_Connection] = set()

    async def take(self) -> list[DialogMessage]:
        """Wait until no statement or transaction is open; return and forget the messages."""

        async def idle() -> bool:
            return all(connection.idle for connection in self._connections)

        await until(idle, "no statement and no transaction is open")
        messages = self._messages.copy()
        self._messages.clear()
        return messages

    @asynccontextmanager
    async def recording(self, database_url: str) -> AsyncIterator[str]:
        """Yield the address of a proxy to the database, and record what passes it."""
        target = urlsplit(database_url)
        pumps: set[asyncio.Task[None]] = set()

        async def accept(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            other_source, other_sink = await asyncio.open_connection(
                target.hostname, target.port or 5432
            )
            # The first message of a client has no type; it names the application.
            first = await source.readexactly(4)
            first += await source.readexactly(_length(first) - 4)
            other_sink.write(first)
            if _PROBE in first:
                connection = _Connection([])
            else:
                connection = _Connection(self._messages)
                self._connections.add(connection)
            for pump in (
                _pump(source, other_sink, connection.on_request),
                _pump(other_source, sink, connection.on_response),
            ):
                task = asyncio.create_task(pump)
                pumps.add(task)
                task.add_done_callback(lambda _: self._connections.discard(connection))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        credentials = target.netloc.rpartition("@")[0]
        try:
            # The proxy cannot read TLS.
            yield target._replace(
                netloc=f"{credentials}@127.0.0.1:{port}", query="sslmode=disable"
            ).geturl()
        finally:
            server.close()
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            await server.wait_closed()


class _Connection:
    """The state of one connection: prepared statements, portals, outstanding responses."""

    def __init__(self, messages: list[DialogMessage]) -> None:
        self._messages = messages
        self._statements: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}
        # The start of a session has a ReadyForQuery as well.
        self._due = 1
        self._in_transaction = False

    @property
    def idle(self) -> bool:
        return self._due == 0 and not self._in_transaction

    def on_request(self, kind: bytes, content: bytes) -> None:
        match kind:
            case b"P":  # Parse: a statement's name and text.
                name, text, _ = content.split(b"\0", 2)
                self._statements[name] = text.decode()
            case b"B":  # Bind: a portal's name and its statement's.
                portal, name, _ = content.split(b"\0", 2)
                self._portals[portal] = self._statements[name]
            case b"E":  # Execute: a portal's name and the most rows to send.
                portal, rows = content.split(b"\0", 1)
                self._record("executed", f"{self._portals[portal]} -- {_length(rows)} rows")
            case b"Q":  # A simple query.
                self._record("executed", content.rstrip(b"\0").decode())
                self._due += 1
            case b"S":  # Sync.
                self._due += 1

    def on_response(self, kind: bytes, content: bytes) -> None:
        match kind:
            case b"D":
                self._record("row", content)
            case b"C" | b"s":  # All rows, or as many as were asked for.
                self._record("end", content)
            case b"E":
                self._record("error", content)
            case b"Z":  # Ready for the next query.
                self._due -= 1
                self._in_transaction = content != b"I"

    def _record(self, kind: str, content: str | bytes) -> None:
        self._messages.append(DialogMessage(kind, content))


async def _pump(
    source: asyncio.StreamReader,
    sink: asyncio.StreamWriter,
    record: Callable[[bytes, bytes], None],
) -> None:
    """Forward messages; record each one first."""
    try:
        while True:
            head = await source.readexactly(5)
            content = await source.readexactly(_length(head[1:]) - 4)
            record(head[:1], content)
            sink.write(head + content)
            await sink.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        sink.close()


def _length(content: bytes) -> int:
    length: int = struct.unpack_from("!i", content)[0]
    return length
