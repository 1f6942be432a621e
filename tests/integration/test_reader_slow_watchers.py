"""Watchers that stop reading are dropped; they delay no other and use little memory."""

import asyncio
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from execution_events.reader.watch import WatchTimeouts
from tests.support.apis import serving
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database
from tests.support.filling import fill
from tests.support.processes import environment
from tests.support.readers import EVENTS, named
from tests.support.records import Log
from tests.support.watching import Watcher

LARGE = "x" * 16_000


@asynccontextmanager
async def stuck(address: httpx.URL, path: str = EVENTS) -> AsyncIterator[socket.socket]:
    """A watcher that reads only the head of the response."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        # Otherwise the system buffers megabytes for it.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(client, (address.host, address.port))
        lines = [f"GET {path} HTTP/1.1", "Host: h", "Accept: text/event-stream", "", ""]
        await loop.sock_sendall(client, "\r\n".join(lines).encode())
        assert (await loop.sock_recv(client, 16)).startswith(b"HTTP/1.1 200")
        yield client


async def test_a_watcher_stuck_in_its_list_is_dropped(
    database: Database, owner: asyncpg.Connection
) -> None:
    await fill(owner, 20_000)
    async with (
        serving(database.reader, WatchTimeouts(chunk=0.5)) as api,
        stuck(api.client.base_url),
    ):

        async def dropped() -> bool:
            return api.refused("slow_watcher") == 1

        # Long before the server's own bound.
        async with asyncio.timeout(10):
            await until(dropped, "it is dropped")
        assert api.watchers == 0


async def test_a_list_that_exceeds_its_timeout_is_cut(
    database: Database, owner: asyncpg.Connection
) -> None:
    """A list holds a snapshot, however fast it is read."""
    await fill(owner, 60_000)
    async with serving(database.reader, WatchTimeouts(list=0)) as api:
        watcher = Watcher()
        with pytest.raises(httpx.RemoteProtocolError):
            async with watcher.watching(api.client, EVENTS) as watch:
                await watch.end()
        assert not watcher.id
        assert api.refused("slow_watcher") == 1


async def test_a_watcher_stuck_in_changes_is_dropped_and_delays_no_other(
    database: Database, written: Log
) -> None:
    watcher = Watcher()
    async with (
        serving(database.reader, WatchTimeouts(chunk=1)) as api,
        stuck(api.client.base_url),
        watcher.watching(api.client, EVENTS) as watch,
    ):
        await watch.next()
        for number in range(20):
            # The others receive each change before the next one is written.
            await written.add(*(named(f"{event:02}", number, message=LARGE) for event in range(50)))
            assert [m.data["count"] for m in await watch.next(50)] == [number + 1] * 50

        async def dropped() -> bool:
            return api.refused("slow_watcher") == 1

        async with asyncio.timeout(10):
            await until(dropped, "it is dropped")
        assert api.watchers == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
async def test_many_stuck_watchers_use_little_memory(
    database: Database, written: Log, unused_port: int
) -> None:
    """Runs in a process of its own, for its peak memory."""
    settings = configured(database_url=database.reader, reader_port=unused_port, management_port=0)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "execution_events.cli", "reader"), env=environment(settings)
    )
    try:
        address = httpx.URL(f"http://127.0.0.1:{unused_port}")
        async with (
            httpx.AsyncClient(base_url=address, timeout=DEADLINE) as client,
            AsyncExitStack() as stack,
        ):

            async def serves() -> bool:
                try:
                    return (await client.get(EVENTS)).status_code == 200
                except httpx.TransportError:
                    return False

            await until(serves, "the reader serves")
            watch = await stack.enter_async_context(Watcher().watching(client, EVENTS))
            await watch.next()

            async def write(seconds: float) -> None:
                """8 MB."""
                await written.add(
                    *(named(f"{number:03}", seconds, message=LARGE) for number in range(500))
                )
                await watch.next(500)

            # The one-time cost of a revision does not count.
            await write(1)
            before = peak_bytes(process.pid)
            for _ in range(40):
                await stack.enter_async_context(
                    stuck(address, f"{EVENTS}?since=2026-01-01T00:00:02Z")
                )
            await write(2)
            added = peak_bytes(process.pid) - before
            print(f"{added / 2**20:.0f} MiB")
            # Each watcher holds only the chunk that the system has not accepted yet, not the whole
            # revision, which would be 320 MB. Usually the sum is 1 MiB; on a busy machine there is
            # a second copy of some revisions.
            assert added < 80 * 2**20
    finally:
        process.terminate()
        await process.wait()


def peak_bytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024
