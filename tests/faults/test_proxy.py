"""Every fault that the proxy can inject into a connection."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.faults.proxy import HOST, CommitFinder, Direction, Proxy

SHORT = 0.2  # seconds in which a response would have come
STARTUP = struct.pack("!ii", 8, 3 << 16)
SSL_REQUEST = struct.pack("!ii", 8, 80877103)


def query(text: str) -> bytes:
    body = text.encode() + b"\0"
    return b"Q" + struct.pack("!i", len(body) + 4) + body


class Echo:
    """A server that sends back all data it receives, and records it."""

    def __init__(self) -> None:
        self.received = b""
        self.ended = False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                self.received += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self.ended = True
            writer.close()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Proxy, Echo]]:
    echo = Echo()
    server = await asyncio.start_server(echo, HOST, 0)
    async with Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy, echo
    server.close()


@asynccontextmanager
async def connected(
    proxy: Proxy,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def silent(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(SHORT):
            return not await reader.read(1000)
    except TimeoutError:
        return True


async def test_forwards_data_and_the_end_of_a_stream() -> None:
    async with proxied() as (proxy, _), connected(proxy) as (reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write_eof()
        assert await reader.read() == b""


async def test_a_cut_resets_open_connections_only() -> None:
    async with proxied() as (proxy, _), connected(proxy) as (reader, writer):
        writer.write(b"hello")
        await reader.readexactly(5)
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            await reader.read()
        async with connected(proxy) as (again, writer):
            writer.write(b"hello")
            assert await again.readexactly(5) == b"hello"


async def test_refuses_and_listens_again_on_the_same_port() -> None:
    async with proxied() as (proxy, _):
        async with proxy.refusing():
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(HOST, proxy.port)
        async with connected(proxy) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"


async def test_a_connection_that_is_being_made_is_reset_too() -> None:
    async with proxied() as (proxy, _):
        connecting = asyncio.create_task(asyncio.open_connection(HOST, proxy.port))
        while not proxy.accepted:
            await asyncio.sleep(0)
        assert proxy.connections == 0
        async with proxy.refusing():
            reader, writer = await connecting
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()


@pytest.mark.parametrize("direction", Direction)
async def test_a_black_hole_closes_nothing_and_forwards_later(direction: Direction) -> None:
    async with proxied() as (proxy, echo), connected(proxy) as (reader, writer):
        writer.write(b"1")
        await reader.readexactly(1)
        async with proxy.black_hole(direction):
            writer.write(b"2")
            assert await silent(reader)
            assert echo.received == (b"1" if direction is Direction.TO_SERVER else b"12")
        assert await reader.readexactly(1) == b"2"


async def test_connections_stay_silent_after_a_permanent_black_hole() -> None:
    async with proxied() as (proxy, _), connected(proxy) as (reader, writer):
        writer.write(b"1")
        await reader.readexactly(1)
        async with proxy.black_hole(permanent=True):
            writer.write(b"2")
        writer.write(b"3")
        assert await silent(reader)
        async with connected(proxy) as (again, writer):
            writer.write(b"4")
            assert await again.readexactly(1) == b"4"


@pytest.mark.parametrize("directions", [(), tuple(Direction), (Direction.TO_CLIENT,)])
async def test_delays_each_chunk_in_the_given_directions(directions: tuple[Direction, ...]) -> None:
    loop = asyncio.get_running_loop()
    async with proxied() as (proxy, echo), connected(proxy) as (reader, writer):
        async with proxy.delayed(0.1, 0.12, *directions):
            begun = loop.time()
            writer.write(b"hello")
            await asyncio.sleep(0.05)
            assert echo.received == (b"hello" if len(directions) == 1 else b"")
            await reader.readexactly(5)
            slow = loop.time() - begun
        begun = loop.time()
        writer.write(b"again")
        await reader.readexactly(5)
        assert loop.time() - begun < 0.09
    assert slow >= (0.09 if len(directions) == 1 else 0.19)
    assert proxy.held_back == (1 if len(directions) == 1 else 2)


async def test_only_the_final_bytes_are_lost() -> None:
    async with proxied() as (proxy, echo), proxy.losing_final_bytes(0.05):
        async with connected(proxy) as (reader, writer):
            writer.write(b"before,")
            await reader.readexactly(7)
            writer.write(b"last")
        await asyncio.sleep(SHORT)
        assert echo.received == b"before,"
        assert proxy.connections == 0


async def test_the_reply_to_a_commit_is_lost_but_not_the_commit() -> None:
    async with proxied() as (proxy, echo), connected(proxy) as (reader, writer):
        proxy.lose_commits(1)
        writer.write(STARTUP + query("BEGIN;"))
        await reader.readexactly(len(STARTUP + query("BEGIN;")))
        writer.write(query("COMMIT;"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert echo.received.endswith(query("COMMIT;"))
        assert proxy.lost_commits == 1
        async with connected(proxy) as (again, writer):
            writer.write(STARTUP + query("COMMIT;"))
            assert await again.readexactly(len(STARTUP)) == STARTUP


def test_a_commit_is_found_in_pieces_of_any_size() -> None:
    stream = SSL_REQUEST + STARTUP + query("BEGIN;") + query("COMMIT;")
    for size in (1, 3, len(stream)):
        finder = CommitFinder()
        found = [finder.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
        assert found == [False] * (len(found) - 1) + [True]


async def test_a_black_hole_withholds_the_end_of_a_stream() -> None:
    async with proxied() as (proxy, echo), connected(proxy) as (reader, writer):
        writer.write(b"1")
        await reader.readexactly(1)
        async with proxy.black_hole():
            writer.write_eof()
            await asyncio.sleep(SHORT)
            assert not echo.ended
        await until(lambda: echo.ended)


async def test_a_server_does_not_notice_that_its_client_is_lost() -> None:
    async with proxied() as (proxy, echo):
        async with connected(proxy) as (reader, writer):
            writer.write(b"1")
            await reader.readexactly(1)
            proxy.lose_client()
            writer.write(b"2")
            assert await silent(reader)
            writer.transport.abort()
        await asyncio.sleep(SHORT)
        assert echo.received == b"1"
        assert not echo.ended
        async with connected(proxy) as (again, writer):
            writer.write(b"3")
            assert await again.readexactly(1) == b"3"


async def test_new_connections_can_go_to_another_server() -> None:
    async with proxied() as (proxy, _), proxied() as (other, echo):
        proxy.retarget(other.port)
        async with connected(proxy) as (reader, writer):
            writer.write(b"1")
            assert await reader.readexactly(1) == b"1"
            assert echo.received == b"1"


def request(api_key: int) -> bytes:
    return (20).to_bytes(4) + api_key.to_bytes(2) + b"\0" * 18


async def test_a_client_is_cut_off_from_only_the_coordinator() -> None:
    async with (
        proxied() as (proxy, echo),
        connected(proxy) as (group, group_writer),
        connected(proxy) as (leader, leader_writer),
        connected(proxy) as (other, other_writer),
    ):
        victims = [writer.get_extra_info("sockname")[1] for writer in (group_writer, leader_writer)]
        async with proxy.no_coordinator(victims.__contains__) as cutoff:
            for writer, api in ((group_writer, 12), (leader_writer, 1), (other_writer, 12)):
                writer.write(request(api))
            assert await leader.readexactly(24) == request(1)
            assert await other.readexactly(24) == request(12)
            assert await silent(group)
            assert len(cutoff.cut) == 1
        assert await group.readexactly(24) == request(12)
        assert len(echo.received) == 3 * 24


async def test_a_cut_off_connection_can_stay_silent() -> None:
    async with (
        proxied() as (proxy, _),
        connected(proxy) as (group, group_writer),
        connected(proxy) as (later, later_writer),
    ):
        async with proxy.no_coordinator(lambda port: True, permanent=True):
            group_writer.write(request(11))
            assert await silent(group)
        assert await silent(group)
        later_writer.write(request(11))
        assert await later.readexactly(24) == request(11)
