"""A TCP proxy on 127.0.0.1 that injects network faults."""

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
    """The direction of a byte stream."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class CommitFinder:
    """A finder of COMMIT in a PostgreSQL client's stream, received in arbitrary pieces."""

    def __init__(self) -> None:
        self._messages = Messages(from_client=True)

    def feed(self, data: bytes) -> bool:
        """Return True if `data` completes a message that commits a transaction."""
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


class Cutoff:
    """The connections that are cut off from a group's coordinator until `healed` is set."""

    def __init__(self, is_victim: Callable[[int], bool]) -> None:
        self.healed = asyncio.Event()
        self.cut: set[_Connection] = set()
        self._is_victim = is_victim
        self._others: set[_Connection] = set()

    async def hold(self, connection: _Connection) -> None:
        """Return once `connection` is not, or no longer, cut off."""
        if not connection.apis & GROUP_APIS or connection in self._others:
            return
        if connection not in self.cut:
            if not self._is_victim(connection.client.get_extra_info("peername")[1]):
                self._others.add(connection)
                return
            self.cut.add(connection)
        await self.healed.wait()


class Proxy:
    """A TCP proxy in front of `target_port`, an asynchronous context manager.

    `port` stays the same while the context is open; 0 picks a free one. Each fault is a context
    manager or returns immediately, and none outlives the proxy. With `sessions`, which `held_at`
    needs, the proxy parses the stream as PostgreSQL's protocol.
    """

    def __init__(self, target_port: int, port: int = 0, *, sessions: bool = False) -> None:
        self.port = port
        self.lost_commits = 0
        self.resets = 0
        self.accepted = 0
        self._cuts = 0
        self.held_back = 0
        self._target_port = target_port
        self._listener: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = {direction: asyncio.Event() for direction in Direction}
        self._delays: dict[Direction, tuple[float, float]] = {}
        self._final_seconds = 0.0
        self._commits_to_lose = 0
        self._sessions = sessions
        self._hold: _Hold | None = None
        self._ended = asyncio.Event()
        self._cutoff: Cutoff | None = None
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
        """The number of open connections."""
        return len(self._connections)

    def cut(self) -> int:
        """Reset every connection (RST, unsent bytes are lost) and return their number.

        One that is not connected to the server yet is reset as soon as it is, and not counted.
        """
        self._cuts += 1
        cut = len(self._connections)
        for connection in self._connections:
            connection.reset()
        self._connections.clear()
        self.resets += cut
        return cut

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Refuse new connections and reset the open ones."""
        self._close()
        self.cut()
        try:
            yield
        finally:
            await self._listen()

    @asynccontextmanager
    async def black_hole(
        self, *directions: Direction, permanent: bool = False
    ) -> AsyncIterator[None]:
        """Forward nothing in `directions` (default: both), and close nothing.

        Afterwards the withheld bytes arrive, as after a network outage. With `permanent`, the open
        connections stay silent, as after a firewall lost its state.
        """
        closed = directions or tuple(Direction)
        for direction in closed:
            self._open[direction].clear()
        try:
            yield
        finally:
            if permanent:
                for connection in self._connections:
                    connection.dead = True
            for direction in closed:
                self._open[direction].set()

    @asynccontextmanager
    async def no_coordinator(
        self, is_victim: Callable[[int], bool], *, permanent: bool = False
    ) -> AsyncIterator[Cutoff]:
        """Forward nothing, in either direction, between some clients and the group coordinator.

        `is_victim` receives the port of each connection that carries requests about a group. Other
        connections of the same client, such as those for fetches from leaders, are unaffected. The
        end is as in `black_hole`.
        """
        self._cutoff = cutoff = Cutoff(is_victim)
        try:
            yield cutoff
        finally:
            self._cutoff = None
            if permanent:
                for connection in cutoff.cut:
                    connection.dead = True
            cutoff.healed.set()

    @asynccontextmanager
    async def delayed(
        self, minimum: float, maximum: float, *directions: Direction
    ) -> AsyncIterator[None]:
        """Delay each chunk by `minimum` to `maximum` seconds in `directions` (default: both).

        Chunks of one connection stay in order; their delays add up.
        """
        slow = directions or tuple(Direction)
        for direction in slow:
            self._delays[direction] = minimum, maximum
        try:
            yield
        finally:
            for direction in slow:
                del self._delays[direction]

    @asynccontextmanager
    async def losing_final_bytes(self, seconds: float) -> AsyncIterator[None]:
        """Drop everything that a client sent in the last `seconds` before it ended.

        This is the effect of a machine that fails with its network. All data to the server is
        delayed by `seconds`.
        """
        self._final_seconds = seconds
        try:
            yield
        finally:
            self._final_seconds = 0.0

    def lose_commits(self, count: int) -> None:
        """Reset the connection instead of forwarding the reply, for the next `count` COMMITs."""
        self._commits_to_lose = count

    def retarget(self, port: int) -> None:
        """Forward new connections to `port`, as when an address moves to another server."""
        self._target_port = port

    def lose_client(self) -> None:
        """Silence the open connections in both directions permanently, and close none.

        This is the state when the client's machine disappears: the server's sockets stay open.
        """
        for connection in self._connections:
            connection.dead = True

    @asynccontextmanager
    async def held_at(self, moment: Moment) -> AsyncIterator[int]:
        """Wait for a session to reach `moment` and hold it there while the context is open.

        Yield the client port of its connection to the server.
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
        cuts = self._cuts
        # A network that drops packets to the server prevents new connections too.
        await self._open[Direction.TO_SERVER].wait()
        try:
            server_reader, server_writer = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            _reset(writer)
            return
        connection = _Connection(writer, server_writer)
        if self._listener is None or self._cuts != cuts:
            connection.reset()
            return
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
            if self._final_seconds and direction is Direction.TO_SERVER:
                await asyncio.sleep(self._final_seconds)
                if reader.at_eof():
                    raise ConnectionResetError
            await self._open[direction].wait()
            if direction is Direction.TO_SERVER:
                connection.apis |= connection.requests.feed(data)
            if self._cutoff is not None:
                await self._cutoff.hold(connection)
            if connection.dead:
                continue
            if direction is Direction.TO_SERVER:
                if connection.commits.feed(data) and self._commits_to_lose > 0:
                    self._commits_to_lose -= 1
                    connection.losing = True
            elif connection.losing:
                # The server has replied: the transaction is committed, unknown to its client.
                self.lost_commits += 1
                raise ConnectionResetError
            if connection.session is not None:
                data = await self._held(connection, connection.session, data, direction)
            writer.write(data)
            await writer.drain()
        # The end of a stream is subject to the same faults as its data.
        await self._until_passing(connection, direction)
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _held(
        self, connection: _Connection, session: Session, data: bytes, direction: Direction
    ) -> bytes:
        """Hold the session at the requested moment; return the rest of `data` to forward."""
        to_server = direction is Direction.TO_SERVER
        moments = session.sends(data) if to_server else session.receives(data)
        hold = self._hold
        if hold is None or hold.moment not in moments or hold.found.done():
            return data
        begin = moments[hold.moment]
        writer = connection.server if to_server else connection.client
        writer.write(data[:begin])
        await writer.drain()
        hold.found.set_result(connection.server.get_extra_info("sockname")[1])
        await hold.released.wait()
        return b"" if connection.dead else data[begin:]

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
