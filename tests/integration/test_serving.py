"""Hostile and broken clients cannot harm others; over real sockets."""

import asyncio
import contextlib
import inspect
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from execution_events.web.connections import ConnectionLimits
from execution_events.web.errors import HEAD_MAX_BYTES, HEADERS_MAX, TARGET_MAX_BYTES
from execution_events.web.server import serve
from tests.support.consumers import DEADLINE

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
BODY = b"the answer"
GOOD_SECONDS = 2.0
"""Time limit for the answer to a well-behaved client, whatever the others do."""


def on_each_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    """Run a test in a new loop of each kind: services use uvloop where it is installed."""

    def run(loop: Callable[[], asyncio.AbstractEventLoop], **given: Any) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(asyncio.wait_for(test(**given), DEADLINE))

    own, _ = inspect.signature(run).parameters.values()
    parameters = [own, *inspect.signature(test).parameters.values()]
    vars(run)["__signature__"] = inspect.Signature(parameters)
    kinds = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return pytest.mark.parametrize("loop", kinds.values(), ids=kinds)(run)


class Server(NamedTuple):
    """A running server, and the reasons and targets that it recorded."""

    host: str
    port: int
    refused: list[str]
    targets: list[str]
    """Of the requests that reached the application."""

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, limit=2**24)

    async def raw(self, request: bytes) -> bytes:
        """Send `request` and return everything until the server closes the connection."""
        source, sink = await self.open()
        try:
            sink.write(request)
            return await source.read()
        finally:
            sink.transport.abort()

    async def good(self) -> float:
        """Return the seconds for the answer to a well-behaved client."""
        started = time.perf_counter()
        answer = await self.raw(CLOSING)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(BODY)
        return time.perf_counter() - started


@asynccontextmanager
async def running(limits: ConnectionLimits, app: Any = None) -> AsyncIterator[Server]:
    refused: list[str] = []
    targets: list[str] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        targets.append(scope["path"])
        headers = [(b"content-length", b"%d" % len(BODY))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})

    async with serve(app or answer, "127.0.0.1", 0, limits, refused.append) as address:
        host, _, port = address.removeprefix("http://").rpartition(":")
        yield Server(host, int(port), refused, targets)


def check_error(answer: bytes, status: int) -> None:
    """Check that `answer` is one complete error response."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert fields["content-type"] == "application/json"
    assert fields["content-length"] == str(len(body))
    assert fields["connection"] == "close"
    assert re.fullmatch("[0-9a-f]{32}", fields["x-request-id"])
    assert "server" not in fields
    error = json.loads(body)
    assert list(error) == ["error_code", "error_msg"]
    assert error["error_code"] == f"EE.{status:04}"
    assert error["error_msg"].isprintable()


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([b"GET / HTTP/1.1", b"Host: h", *lines, b"", b""])


MANY = [b"X-%d: y" % number for number in range(20_000)]


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls\r\n\r\n", 400, "malformed"),
        (b"GET\r\n\r\n", 400, "malformed"),
        (b"GET /\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505, "malformed"),
        (b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n", 400, "malformed"),
        (b"GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n", 400, "malformed"),
        (head(b"X : y"), 400, "malformed"),
        (head(b"X: a\0b"), 400, "malformed"),
        (head(b"Host: other"), 400, "malformed"),
        (head(b"Content-Length: 1", b"Content-Length: 2"), 400, "malformed"),
        (head(b"Content-Length: -1"), 400, "malformed"),
        (head(b"Content-Length: 9" + b"9" * 30), 400, "malformed"),
        (head(b"Transfer-Encoding: gzip, chunked"), 501, "malformed"),
        (head(b"X: " + b"x" * 1_000_000), 431, "head_size"),
        (b"GET /" + b"x" * 1_000_000, 431, "head_size"),
        (b"x" * 1_000_000, 431, "head_size"),
        (head(*MANY), 431, "head_size"),
        (b"\r\n", 400, "malformed"),
        (b"\r\n" * 500_000, 400, "malformed"),
        (head(*MANY[: HEADERS_MAX]), 431, "head_size"),
        (head(b"X: " + b"x" * (HEAD_MAX_BYTES - 60)), 200, None),
        (head(b"X: " + b"x" * HEAD_MAX_BYTES), 431, "head_size"),
        (head(*MANY[: HEADERS_MAX - 2], b"Connection: close"), 200, None),
        (b"GET /%b HTTP/1.1\r\nHost: h\r\n\r\n" % (b"x" * TARGET_MAX_BYTES), 414, "head_size"),
        (head(b"Content-Length: 1") + b"x", 413, "body"),
        (head(b"Content-Length: 1000000000"), 413, "body"),
        (head(b"Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n", 413, "body"),
        (head(b"Transfer-Encoding: chunked") + b"zz\r\n", 400, "malformed"),
        (head(b"Content-Length: 5", b"Expect: 100-continue"), 413, "body"),
        (head(b"Content-Length: 0", b"Connection: close"), 200, None),
        (head(b"Connection: close, upgrade", b"Upgrade: websocket"), 200, None),
        (b"OPTIONS * HTTP/1.0\r\n\r\n", 200, None),
        (b"GET http://h/a HTTP/1.0\r\n\r\n", 200, None),
    ],
    ids=["tls", "method", "0.9", "no host", "2.0", "bytes", "nul", "space", "value nul",
         "two hosts", "two lengths", "negative", "length", "coding", "1 MB header", "1 MB target",
         "1 MB", "20,000 headers", "empty line", "empty lines", "101 headers", "largest",
         "too large", "100 headers", "target", "body", "long body", "chunks", "wrong chunks",
         "expect",
         "no body", "upgrade", "options", "absolute"],
)  # fmt: skip
@on_each_loop
async def test_each_malformed_request_gets_its_error(
    request_: bytes, status: int, reason: str | None
) -> None:
    async with running(ConnectionLimits(head_timeout=0.5, idle_timeout=1)) as server:
        answer = await server.raw(request_)
        if status == 200:
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert server.refused == []
        else:
            check_error(answer, status)
            # A chunked request can be refused before its wrong chunk is parsed.
            assert server.refused[:1] in ([reason], ["body"])
            assert server.targets == []
        assert await server.good() < GOOD_SECONDS


@on_each_loop
async def test_a_post_with_a_body_is_answered_and_its_connection_closed() -> None:
    async with running(ConnectionLimits()) as server:
        answer = await server.raw(
            b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" + GET
        )
        assert answer.count(b"HTTP/1.1 200 OK") == 1
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert server.targets == ["/p"]


@on_each_loop
async def test_an_error_to_head_has_no_body() -> None:
    async with running(ConnectionLimits()) as server:
        answer = await server.raw(b"HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.endswith(b"\r\n\r\n")


# Pipelining.


@on_each_loop
async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running(ConnectionLimits()) as server:
        requests = b"".join(
            b"GET /%d HTTP/1.1\r\nHost: h\r\nX: %b\r\n\r\n" % (number, b"x" * 300)
            for number in range(500)
        )
        answer = await server.raw(requests + CLOSING)
        assert answer.count(b"HTTP/1.1 200 OK\r\n") == 501
        assert server.targets == [f"/{number}" for number in range(500)] + ["/"]


@on_each_loop
async def test_a_large_head_behind_another_request_is_refused() -> None:
    async with running(ConnectionLimits()) as server:
        answer = await server.raw(GET + head(*MANY))
        first, _, second = answer.partition(BODY)
        assert first.startswith(b"HTTP/1.1 200 OK\r\n")
        check_error(second, 431)
        assert server.targets == ["/"]


@on_each_loop
async def test_pipelined_requests_take_bounded_memory() -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        # Streams keep receiving, to notice a disconnect.
        disconnected = asyncio.ensure_future(receive())
        entered.set()
        await release.wait()
        disconnected.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": BODY})

    async with running(ConnectionLimits(), app) as server:
        _, sink = await server.open()
        sink.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sink.write(GET)
        await entered.wait()
        sink.transport.set_write_buffer_limits(high=0)
        for _ in range(64):
            sink.write(GET * 40_000)
        # The server stops reading, so the data stays with its sender.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await sink.drain()
        assert sink.transport.get_write_buffer_size() > 56 * 2**20
        sink.transport.abort()
        release.set()


# Timeouts.


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET[:-2]])
@on_each_loop
async def test_an_incomplete_head_times_out(sent: bytes) -> None:
    async with running(ConnectionLimits(head_timeout=0.5)) as server:
        started = time.perf_counter()
        answer = await reading_to_end(server, sent)
        assert 0.4 < time.perf_counter() - started < 3
        if sent:
            check_error(answer, 408)
        assert server.refused == ["head_time"]


async def reading_to_end(server: Server, *sent: bytes) -> bytes:
    """Return everything until the connection is closed or reset."""
    source, sink = await server.open()
    answer = b""
    try:
        for part in sent:
            sink.write(part)
        with contextlib.suppress(ConnectionError):
            while received := await source.read(65536):
                answer += received
        return answer
    finally:
        sink.transport.abort()


@on_each_loop
async def test_a_dripping_head_times_out() -> None:
    async with running(ConnectionLimits(head_timeout=0.5)) as server:
        source, sink = await server.open()
        started = time.perf_counter()
        for byte in GET * 100:
            sink.write(bytes([byte]) if byte != 10 else b"\r")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    check_error(await source.read(), 408)
                    break
        assert time.perf_counter() - started < 3
        sink.transport.abort()


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
@on_each_loop
async def test_an_idle_connection_times_out(sent: bytes) -> None:
    async with running(ConnectionLimits(head_timeout=0.5, idle_timeout=1)) as server:
        started = time.perf_counter()
        answer = await reading_to_end(server, GET + sent)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert time.perf_counter() - started < 4


@on_each_loop
async def test_an_incomplete_head_on_a_kept_connection_times_out() -> None:
    async with running(ConnectionLimits(head_timeout=0.5, idle_timeout=30)) as server:
        source, sink = await server.open()
        for _ in range(2):
            sink.write(GET)
            assert (await source.readuntil(BODY)).startswith(b"HTTP/1.1 200 OK\r\n")
        started = time.perf_counter()
        sink.write(GET[:-2])
        check_error(await source.read(), 408)
        assert 0.4 < time.perf_counter() - started < 3
        sink.transport.abort()


@on_each_loop
async def test_a_dripping_body_does_not_hold_its_connection() -> None:
    async with running(ConnectionLimits(head_timeout=0.5, idle_timeout=1)) as server:
        for method in (b"GET", b"POST"):
            source, sink = await server.open()
            sink.write(method + b" / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
            started = time.perf_counter()
            while not source.at_eof() and not sink.transport.is_closing():
                sink.write(b"x")
                with contextlib.suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(0.05):
                        await source.read(65536)
            assert time.perf_counter() - started < 4
            sink.transport.abort()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("size", [50_000, 20_000_000])
@on_each_loop
async def test_a_client_that_does_not_read_is_disconnected(size: int, streamed: bool) -> None:
    disconnected = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        step = 10_000 if streamed else size
        for _ in range(size // step):
            await send({"type": "http.response.body", "body": b"x" * step, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected.set()

    async with running(
        ConnectionLimits(write_timeout=1, idle_timeout=1, head_timeout=1), app
    ) as server:
        with silent_socket(server) as client:
            client.sendall(GET)
            await disconnected.wait()
            while client_is_served(client):
                await asyncio.sleep(0.05)
        if size > 10_000_000:
            assert server.refused == ["slow_reader"]


@on_each_loop
async def test_a_client_that_reads_slowly_gets_its_response() -> None:
    """It takes longer than the timeout of a client that reads nothing."""
    size = 3_000_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * size})

    async with running(ConnectionLimits(write_timeout=1), app) as server:
        with silent_socket(server) as client:
            loop = asyncio.get_running_loop()
            client.setblocking(False)
            await loop.sock_sendall(client, CLOSING)
            received, started = 0, time.perf_counter()
            while content := await loop.sock_recv(client, 40_000):
                received += len(content)
                await asyncio.sleep(0.005)
            assert received > size
            assert time.perf_counter() - started > 1.5
        assert server.refused == []


def silent_socket(server: Server) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((server.host, server.port))
    return client


def client_is_served(client: socket.socket) -> bool:
    """Return whether the server's end is open: writing to a closed one raises."""
    try:
        client.send(b"\r\n", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


@on_each_loop
async def test_a_body_does_not_wait_for_the_acknowledgement_of_its_head() -> None:
    """With Nagle's algorithm each response on a kept connection takes 40 ms."""
    async with running(ConnectionLimits()) as server:
        source, sink = await server.open()
        started = time.perf_counter()
        for _ in range(50):
            sink.write(GET)
            await source.readuntil(BODY)
        assert time.perf_counter() - started < 1
        sink.transport.abort()


# Numbers of connections.


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET], ids=["silent", "half", "idle"])
@on_each_loop
async def test_a_thousand_idle_clients_leave_room_for_others(sent: bytes) -> None:
    async with running(ConnectionLimits(connections=100, head_timeout=60)) as server:
        clients = [await server.open() for _ in range(1000)]
        for _, sink in clients:
            with contextlib.suppress(ConnectionError):
                sink.write(sent)
        assert await server.good() < GOOD_SECONDS
        assert set(server.refused) == {"evicted"}
        assert len(server.refused) >= 900
        for _, sink in clients:
            sink.transport.abort()


@on_each_loop
async def test_clients_with_large_heads_do_not_delay_others() -> None:
    async with running(ConnectionLimits()) as server:
        large = head(*MANY)
        attack = [asyncio.create_task(reading_to_end(server, large)) for _ in range(200)]
        seconds = [await server.good() for _ in range(20)]
        assert max(seconds) < GOOD_SECONDS
        for answer in await asyncio.gather(*attack):
            check_error(answer, 431)


@pytest.mark.parametrize(
    "sent",
    [b"x\r\n\r\n", b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
    ids=["head", "chunk"],
)
@on_each_loop
async def test_refused_clients_that_stay_connected_are_evicted(sent: bytes) -> None:
    async with running(ConnectionLimits(connections=20, head_timeout=60)) as server:
        clients = [await server.open() for _ in range(20)]
        for source, sink in clients:
            sink.write(sent)
            check_error(await source.read(), 400)
        assert await server.good() < GOOD_SECONDS
        assert server.refused == ["malformed"] * 20 + ["evicted"]
        for _, sink in clients:
            sink.transport.abort()


@on_each_loop
async def test_a_large_head_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing 20,000 headers blocks the loop for 24 ms."""
    parsed = []

    async def accept(self: object, scope: Scope, receive: Receive, send: Send) -> None:
        parsed.append(len(scope["headers"]))

    monkeypatch.setattr("execution_events.web.server._RequestFilter.__call__", accept)
    async with running(ConnectionLimits()) as server:
        # Few enough to arrive in one piece.
        check_error(await server.raw(head(*MANY[:4000])), 431)
        assert parsed == []


@on_each_loop
async def test_clients_with_requests_in_progress_are_not_evicted() -> None:
    entered, release = asyncio.Semaphore(0), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        entered.release()
        await release.wait()
        headers = [(b"content-length", b"10")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})

    async with running(ConnectionLimits(connections=3), app) as server:
        served = [asyncio.create_task(server.raw(CLOSING)) for _ in range(3)]
        for _ in range(3):
            await entered.acquire()
        answer = await server.raw(CLOSING)
        check_error(answer, 503)
        assert b"\r\nretry-after: 1\r\n" in answer
        assert server.refused == ["connections"]
        release.set()
        for answer in await asyncio.gather(*served):
            assert answer.endswith(BODY)
        assert await server.good() < GOOD_SECONDS


@on_each_loop
async def test_a_server_stops_in_time_with_unfinished_requests() -> None:
    sinks = []
    async with running(ConnectionLimits()) as server:
        for sent in (b"", b"GET / HT", GET, head(*MANY), b"x" * 20_000):
            _, sink = await server.open()
            sink.write(sent)
            sinks.append(sink)
        assert await server.good() < GOOD_SECONDS
        stopping = time.perf_counter()
    assert time.perf_counter() - stopping < 8
    for sink in sinks:
        sink.transport.abort()
    await asyncio.sleep(0)
