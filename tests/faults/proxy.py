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

from tests.faults.protocol import Messages, Moment, Session
from tests.faults.requests import GROUP_APIS, ApiKeys

HOST = "127.0.0.1"
_CHUNK = 64 * 1024
_END_LIMIT = 0.2  # seconds
_LINGER_0 = struct.pack("ii", 1, 0)


class Direction(Enum):
    """Which way bytes flow."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class CommitFinder:
    """Finds COMMIT in what a client sends over PostgreSQL's protocol, however it is cut up."""

    def __init__(self) -> None:
        self._messages = Messages(from_client=True)

    def feed(self, data: bytes) -> bool:
        """Whether `data` completes a message that commits a transaction."""
        found = False
        for kind, body, _ in self._messages.feed(data):
            found |= kind in (b"Q", b"P") and b"COMMIT" in body.upper()
        return found


class _Connection:
    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.commits = CommitFinder()
        self.session: Session | None = None
        self.requests = ApiKeys()
        self.apis: set[int] = set()
        self.losing = False
        self.dead = False

    def reset(self) -> None:
        _reset(self.client)
        _reset(self.server)


class _Hold:
    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self.found: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.released = asyncio.Event()


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
    `held_at` needs `sessions`: the proxy then follows what it passes as PostgreSQL's protocol.
    """

    def __init__(self, target_port: int, port: int = 0, *, sessions: bool = False) -> None:
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
        self._sessions = sessions
        self._hold: _Hold | None = None
        self._ended = asyncio.Event()
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
        self._ended.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_END_LIMIT)
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

    def retarget(self, port: int) -> None:
        """Lead new connections to the server at `port`, as where an address moves."""
        self._target_port = port

    def lose_client(self) -> None:
        """Pass nothing more on the open connections, in either direction, and close none.

        As where the client's machine has gone: the server is not told, and its socket stays open.
        """
        for connection in self._connections:
            connection.dead = True

    @asynccontextmanager
    async def held_at(self, moment: Moment) -> AsyncIterator[int]:
        """Wait for a session that comes to `moment`, and keep it there until the end.

        Gives the port of its connection to the server.
        """
        hold = _Hold(moment)
        self._hold = hold
        try:
            yield await hold.found
        finally:
            self._hold = None
            hold.released.set()

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
        if self._sessions:
            connection.session = Session()
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
            await self._until_passing(connection)
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
            if connection.session is not None:
                data = await self._held(connection, connection.session, data, direction)
            writer.write(data)
            await writer.drain()
        # Its end passes where what was sent on it does.
        await self._until_passing(connection, direction)
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _held(
        self, connection: _Connection, session: Session, data: bytes, direction: Direction
    ) -> bytes:
        """Keep the session at the moment that is asked for; what of `data` is still to pass."""
        to_server = direction is Direction.TO_SERVER
        moments = session.sends(data) if to_server else session.receives(data)
        hold = self._hold
        if hold is None or hold.moment not in moments or hold.found.done():
            return data
        place = moments[hold.moment]
        writer = connection.server if to_server else connection.client
        writer.write(data[:place])
        await writer.drain()
        hold.found.set_result(connection.server.get_extra_info("sockname")[1])
        await hold.released.wait()
        return b"" if connection.dead else data[place:]

    async def _until_passing(self, connection: _Connection, *directions: Direction) -> None:
        for direction in directions:
            await self._open[direction].wait()
        if connection.dead:
            await self._ended.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    writer.transport.abort()
