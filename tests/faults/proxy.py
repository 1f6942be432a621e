"""A TCP proxy on 127.0.0.1 whose network can be made to fail."""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from types import TracebackType
from typing import Self

from tests.faults.requests import GROUP_APIS, ApiKeys

HOST = "127.0.0.1"
_CHUNK = 64 * 1024
_LINGER_0 = struct.pack("ii", 1, 0)
_STARTUP_MAJOR = 3
"""The protocol version in the first message that begins a PostgreSQL session."""


class Direction(Enum):
    """Which way bytes flow."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class CommitFinder:
    """Finds COMMIT in what a client sends over PostgreSQL's protocol, however it is cut up."""

    def __init__(self) -> None:
        self._rest = b""
        self._started = False

    def feed(self, data: bytes) -> bool:
        """Whether `data` completes a message that commits a transaction."""
        self._rest += data
        found = False
        while (message := self._message()) is not None:
            kind, body = message
            found |= kind in (b"Q", b"P") and b"COMMIT" in body.upper()
        return found

    def _message(self) -> tuple[bytes, bytes] | None:
        # Until the session begins, messages have no type byte.
        prefix = 1 if self._started else 0
        if len(self._rest) < prefix + 4:
            return None
        # No message is shorter; other protocols pass here as well, and must not hold it up.
        size = max(4, int.from_bytes(self._rest[prefix : prefix + 4]))
        if len(self._rest) < prefix + size:
            return None
        kind, body = self._rest[:prefix], self._rest[prefix + 4 : prefix + size]
        self._rest = self._rest[prefix + size :]
        if not self._started:
            self._started = int.from_bytes(body[:2]) == _STARTUP_MAJOR
        return kind, body


class _Connection:
    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.commits = CommitFinder()
        self.requests = ApiKeys()
        self.apis: set[int] = set()
        self.losing = False
        self.dead = False

    def reset(self) -> None:
        _reset(self.client)
        _reset(self.server)


class Partition:
    """The connections that are cut off from a group's coordinator, until `healed`."""

    def __init__(self, is_victim: Callable[[int], bool]) -> None:
        self.healed = asyncio.Event()
        self.cut: set[_Connection] = set()
        self._is_victim = is_victim
        self._others: set[_Connection] = set()

    async def hold(self, connection: _Connection) -> None:
        """Return once `connection` is not cut off, or not any more."""
        if not connection.apis & GROUP_APIS or connection in self._others:
            return
        if connection not in self.cut:
            if not self._is_victim(connection.client.get_extra_info("peername")[1]):
                self._others.add(connection)
                return
            self.cut.add(connection)
        await self.healed.wait()


class Proxy:
    """Passes bytes between its own port and `target_port` until it is told otherwise.

    An asynchronous context manager. `port` stays the same while the context is open; 0 chooses
    one. Every failure is a context manager or returns at once, and none outlives the proxy.
    """

    def __init__(self, target_port: int, port: int = 0) -> None:
        self.port = port
        self.lost_commits = 0
        self.resets = 0
        self.accepted = 0
        self.held_back = 0
        self._target_port = target_port
        self._listener: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = {direction: asyncio.Event() for direction in Direction}
        self._delays: dict[Direction, tuple[float, float]] = {}
        self._last_words = 0.0
        self._commits_to_lose = 0
        self._partition: Partition | None = None
        for event in self._open.values():
            event.set()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def cut(self) -> int:
        """Reset every connection (RST, unsent bytes are lost); return how many there were."""
        cut = len(self._connections)
        for connection in self._connections:
            connection.reset()
        self._connections.clear()
        self.resets += cut
        return cut

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Refuse connections; those that are open are reset."""
        self._close()
        self.cut()
        try:
            yield
        finally:
            await self._listen()

    @asynccontextmanager
    async def black_hole(
        self, *directions: Direction, forgetful: bool = False
    ) -> AsyncIterator[None]:
        """Forward nothing in `directions` (both without any), and close nothing.

        At the end what was sent arrives, as after a short break of a network; `forgetful`, as
        where a firewall lost its table, the connections of the time stay silent for ever.
        """
        closed = directions or tuple(Direction)
        for direction in closed:
            self._open[direction].clear()
        try:
            yield
        finally:
            if forgetful:
                for connection in self._connections:
                    connection.dead = True
            for direction in closed:
                self._open[direction].set()

    @asynccontextmanager
    async def no_coordinator(
        self, is_victim: Callable[[int], bool], *, forgetful: bool = False
    ) -> AsyncIterator[Partition]:
        """Forward nothing, either way, between some clients and the group's coordinator here.

        `is_victim` is asked with the port of a client that sends requests about its group. Its
        other connections stay as they are: what it asks the leaders here goes by those. The end is
        as in `black_hole`.
        """
        self._partition = partition = Partition(is_victim)
        try:
            yield partition
        finally:
            self._partition = None
            if forgetful:
                for connection in partition.cut:
                    connection.dead = True
            partition.healed.set()

    @asynccontextmanager
    async def delayed(
        self, least: float, most: float, *directions: Direction
    ) -> AsyncIterator[None]:
        """Hold back each piece for `least` to `most` seconds in `directions` (both without any).

        Pieces of one connection stay in order, and each waits after the one before it.
        """
        slow = directions or tuple(Direction)
        for direction in slow:
            self._delays[direction] = least, most
        try:
            yield
        finally:
            for direction in slow:
                del self._delays[direction]

    @asynccontextmanager
    async def losing_last_words(self, seconds: float) -> AsyncIterator[None]:
        """Deliver nothing that a client sent less than `seconds` before its end.

        As where a machine dies with its network: what a process has sent does not arrive. All
        that reaches the server is late by `seconds`.
        """
        self._last_words = seconds
        try:
            yield
        finally:
            self._last_words = 0.0

    def lose_commits(self, count: int) -> None:
        """Let the server answer the next `count` COMMITs, and reset instead of the answer."""
        self._commits_to_lose = count

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, HOST, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        # A network that swallows requests lets nobody reach the server either.
        await self._open[Direction.TO_SERVER].wait()
        try:
            server_reader, server_writer = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            _reset(writer)
            return
        connection = _Connection(writer, server_writer)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(
                    self._pump(connection, reader, server_writer, Direction.TO_SERVER)
                )
                group.create_task(
                    self._pump(connection, server_reader, writer, Direction.TO_CLIENT)
                )
        except* OSError:
            connection.reset()
        finally:
            self._connections.discard(connection)
            for side in (writer, server_writer):
                side.close()

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: Direction,
    ) -> None:
        while data := await reader.read(_CHUNK):
            if direction in self._delays:
                self.held_back += 1
                await asyncio.sleep(random.uniform(*self._delays[direction]))
            if self._last_words and direction is Direction.TO_SERVER:
                await asyncio.sleep(self._last_words)
                if reader.at_eof():
                    raise ConnectionResetError
            await self._open[direction].wait()
            if direction is Direction.TO_SERVER:
                connection.apis |= connection.requests.feed(data)
            if self._partition is not None:
                await self._partition.hold(connection)
            if connection.dead:
                continue
            if direction is Direction.TO_SERVER:
                if connection.commits.feed(data) and self._commits_to_lose > 0:
                    self._commits_to_lose -= 1
                    connection.losing = True
            elif connection.losing:
                # The server has answered: the transaction is stored, and nobody will be told.
                self.lost_commits += 1
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    writer.transport.abort()
