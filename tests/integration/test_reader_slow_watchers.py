"""A client that stops reading is dropped; it costs others nothing, and the process little."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest

from execution_events.reader.watch import WatchLimits
from tests.support.apis import serving
from tests.support.consumers import until
from tests.support.databases import Database
from tests.support.filling import fill
from tests.support.readers import EVENTS, named
from tests.support.records import Log
from tests.support.watching import Watcher

LARGE = "x" * 16_000


@asynccontextmanager
async def stuck(address: httpx.URL, path: str = EVENTS) -> AsyncIterator[socket.socket]:
    """A client that watches and reads no more than the head of the answer."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        # Or the system takes megabytes for it.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(client, (address.host, address.port))
        lines = [f"GET {path} HTTP/1.1", "Host: h", "Accept: text/event-stream", "", ""]
        await loop.sock_sendall(client, "\r\n".join(lines).encode())
        assert (await loop.sock_recv(client, 16)).startswith(b"HTTP/1.1 200")
        yield client


async def test_one_that_is_stuck_in_its_list_is_dropped(
    database: Database, owner: asyncpg.Connection
) -> None:
    await fill(owner, 20_000)
    async with (
        serving(database.reader, WatchLimits(chunk=0.5)) as api,
        stuck(api.client.base_url),
    ):

        async def dropped() -> bool:
            return api.refused("slow_watcher") == 1

        # Long before the server's own bound.
        async with asyncio.timeout(10):
            await until(dropped, "it is dropped")
        assert api.watchers == 0


async def test_a_list_that_takes_too_long_is_cut(
    database: Database, owner: asyncpg.Connection
) -> None:
    """However well it is read: it holds a snapshot."""
    await fill(owner, 60_000)
    async with serving(database.reader, WatchLimits(list=0)) as api:
        watcher = Watcher()
        with pytest.raises(httpx.RemoteProtocolError):
            async with watcher.watching(api.client, EVENTS) as watch:
                await watch.end()
        assert not watcher.id
        assert api.refused("slow_watcher") == 1


async def test_one_that_is_stuck_in_changes_is_dropped_and_holds_up_nobody(
    database: Database, written: Log
) -> None:
    watcher = Watcher()
    async with (
        serving(database.reader, WatchLimits(chunk=1)) as api,
        stuck(api.client.base_url),
        watcher.watching(api.client, EVENTS) as watch,
    ):
        await watch.next()
        for number in range(20):
            # Others have each change before the next one is written.
            await written.add(*(named(f"{event:02}", number, message=LARGE) for event in range(50)))
            assert [m.data["count"] for m in await watch.next(50)] == [number + 1] * 50

        async def dropped() -> bool:
            return api.refused("slow_watcher") == 1

        async with asyncio.timeout(10):
            await until(dropped, "it is dropped")
        assert api.watchers == 1
