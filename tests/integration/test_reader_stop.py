"""A reader that stops: not ready first, then ordinary service, then cuts that no client misses."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database
from tests.support.filling import fill
from tests.support.processes import COMMAND, Service, environment
from tests.support.readers import EVENTS, EXECUTIONS, Reader, named, reading
from tests.support.records import Log
from tests.support.watching import Watcher

EVENTS_STORED = 40_000
"""More than the buffers between a reader and its client hold."""


@pytest.fixture
async def process(
    database: Database, owner: asyncpg.Connection, tmp_path: Path, unused_port: int
) -> AsyncIterator[Service]:
    """A reader of a long list in a process of its own."""
    await fill(owner, EVENTS_STORED)
    settings = configured(
        database_url=database.reader,
        reader_port=unused_port,
        management_port=0,
        drain_delay=0,
        stop_timeout=5,
    )
    env = environment(settings, EXECUTION_EVENTS_LOG_FORMAT="json")
    async with Service((*COMMAND, "reader"), tmp_path / "log", env) as started:

        async def starts() -> bool:
            return "reader_started" in started.output

        await until(starts, "the reader has started")
        yield started


@asynccontextmanager
async def long_list(port: int, version: str) -> AsyncIterator[asyncio.StreamReader]:
    """A response that has begun, to a client that has read its head alone."""
    source, sink = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    sink.write(f"GET {EVENTS} {version}\r\nHost: localhost\r\n\r\n".encode())
    try:
        assert (await source.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        yield source
    finally:
        sink.transport.abort()


async def rest(source: asyncio.StreamReader) -> bytes:
    """Return everything up to the end of the connection."""
    content = b""
    async with asyncio.timeout(DEADLINE):
        while part := await source.read(65536):
            content += part
    return content


def entries(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize("cause", ["database", "stop", "kill"])
async def test_a_cut_list_is_an_error_in_http_1_0(
    process: Service, admin: asyncpg.Connection, unused_port: int, cause: str
) -> None:
    """HTTP/1.0 ends a body with the connection: only a reset tells a part from the whole."""
    async with long_list(unused_port, "HTTP/1.0") as source:
        match cause:
            case "database":
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE usename = 'execution_events_reader'"
                )
            case "stop":
                assert await process.stop() == 0
            case "kill":
                await process.stop(signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            await rest(source)
    expected = {"database": "stream_aborted", "stop": "responses_cut"}
    if cause == "database":
        assert await process.stop() == 0
    if cause in expected:
        cut = [entry for entry in entries(process.output) if entry["level"] != "info"]
        # The only other event is of the start.
        assert [entry["event"] for entry in cut] == ["authentication_disabled", expected[cause]]
        assert all("traceback" not in entry for entry in cut)


async def test_a_whole_list_is_no_error_in_http_1_0(process: Service, unused_port: int) -> None:
    async with long_list(unused_port, "HTTP/1.0") as source:
        assert len(json.loads(await rest(source))) == EVENTS_STORED


async def test_a_stop_fails_readyz_and_the_reader_serves_for_the_drain_delay(
    database: Database, written: Log
) -> None:
    await written.add(named("a"))
    watcher = Watcher()
    async with (
        reading(database.reader, drain_delay=2) as reader,
        watcher.watching(reader.api, EVENTS) as watch,
    ):
        await watch.next(2)
        assert (await reader.management.get("/readyz")).status_code == 200
        reader.stop.set()
        stopped = time.monotonic()
        ready = await reader.management.get("/readyz")
        assert ready.status_code == 503
        assert ready.json() == {"ready": False, "reasons": ["the reader is stopping"]}
        assert (await reader.management.get("/livez")).status_code == 200
        await written.add(named("b"))
        assert (await watch.next())[0].data["metadata"]["name"] == "b"
        served = 0

        async def closed() -> bool:
            nonlocal served
            try:
                # Each on a connection of its own, as from another client.
                async with httpx.AsyncClient(base_url=reader.api.base_url) as client:
                    assert len((await client.get(EVENTS)).json()) == 2
                    [execution] = (await client.get(EXECUTIONS)).json()
                    assert execution["events"] == 2
            except httpx.ConnectError:
                return True
            served += 1
            return False

        await until(closed, "the port is closed")
        assert time.monotonic() - stopped >= 2
        assert served >= 2
        await watch.end()


async def test_the_drain_delay_is_a_part_of_the_stop_timeout(database: Database) -> None:
    """A supervisor kills a process that takes longer."""
    async with reading(database.reader, drain_delay=20, stop_timeout=5) as reader:
        stopped = time.monotonic()
        reader.stop.set()
        assert (await reader.api.get(EVENTS)).status_code == 200
    assert time.monotonic() - stopped < 5


async def test_a_list_in_progress_ends_after_the_port_is_closed(
    reader: Reader, owner: asyncpg.Connection
) -> None:
    await fill(owner, EVENTS_STORED)
    async with reader.api.stream("GET", EVENTS) as response:
        parts = response.aiter_bytes()
        body = await anext(parts)
        reader.stop.set()

        async def closed() -> bool:
            try:
                async with httpx.AsyncClient(base_url=reader.api.base_url) as client:
                    await client.get(EVENTS)
            except httpx.TransportError:
                return True
            return False

        await until(closed, "the port is closed")
        async for part in parts:
            body += part
    assert len(json.loads(body)) == EVENTS_STORED
