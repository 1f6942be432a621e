"""Long lists are streamed from one snapshot in bounded memory and time, or visibly cut."""

import asyncio
import json
import re
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import cramjam
import httpx
import pytest
from prometheus_client import CollectorRegistry

from execution_events.metrics import ReaderMetrics
from execution_events.projection.body import decode
from execution_events.reader.app import create_app
from execution_events.reader.endpoint import EventsEndpoint
from execution_events.reader.execution_endpoint import ExecutionsEndpoint
from execution_events.reader.streaming import StreamTimeouts
from execution_events.reader.watch import Watches
from execution_events.settings import ReaderSettings
from execution_events.store.read import events as listing
from execution_events.store.read.events import EventReader
from execution_events.store.read.feeds import Feeds
from execution_events.store.read.selection import Selection
from execution_events.store.write.batches import BatchWriter
from execution_events.web.auth.access import Access
from execution_events.web.limits import ConcurrencyLimits
from execution_events.web.server import serve
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database
from tests.support.filling import fill
from tests.support.processes import environment
from tests.support.readers import EVENTS, Reader, named, transactions
from tests.support.records import batch, log
from tests.support.sse import Chunks


class Answer(NamedTuple):
    """A response; `whole` is false if its last chunk is missing."""

    head: bytes
    body: bytes
    whole: bool


def answer(content: bytes) -> Answer:
    """Parse a chunked response that may be incomplete."""
    head, _, rest = content.partition(b"\r\n\r\n")
    chunks = Chunks()
    body = chunks.feed(rest)
    return Answer(head, body, chunks.ended)


@asynccontextmanager
async def requested(address: str, path: str = EVENTS, *headers: str) -> AsyncIterator[Any]:
    """A connection with a request for a list and a small receive buffer."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    source, sink = await asyncio.open_connection(host, int(port), limit=1024)
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
    sink.write("\r\n".join(lines).encode())
    try:
        yield source
    finally:
        sink.transport.abort()


@asynccontextmanager
async def limited(database: Database, timeouts: StreamTimeouts) -> AsyncIterator[str]:
    """The address of an API with these timeouts and a single connection for streams."""
    async with EventReader.open(database.reader, streams=1) as lists:
        metrics = ReaderMetrics(CollectorRegistry())
        everybody = Access(None, metrics)
        watches = Watches(lists, Feeds(lists), everybody, metrics)
        limits = ConcurrencyLimits(ReaderSettings(), metrics)
        endpoint = EventsEndpoint(lists, watches, everybody, limits, metrics, timeouts)
        app = create_app(ExecutionsEndpoint(lists, everybody, limits), endpoint, metrics)
        async with serve(app) as address:
            yield address


def numbers(body: bytes) -> list[int]:
    return [event["count"] for event in json.loads(body)]


@pytest.mark.parametrize("events", [255, 256, 257, 384, 1000])
async def test_lists_of_any_length_are_complete(
    reader: Reader, owner: asyncpg.Connection, events: int
) -> None:
    await fill(owner, events)
    response = await reader.get(EVENTS)
    assert numbers(response.content) == list(range(1, events + 1))
    assert ("Content-Length" in response.headers) == (events <= 256)
    down = await reader.get(EVENTS, params={"order": "desc", "q": "ELEMENT"})
    assert numbers(down.content) == list(range(events, 0, -1))
    lines = await reader.get(EVENTS, headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line) for line in lines.content.splitlines()] == response.json()


async def test_a_stream_supports_head_and_conditions(
    reader: Reader, owner: asyncpg.Connection
) -> None:
    await fill(owner, 1000)
    get, head = await reader.get(EVENTS), await reader.request("HEAD", EVENTS)
    varying = {"x-request-id", "date"}
    assert {n: v for n, v in head.headers.items() if n not in varying} == {
        n: v for n, v in get.headers.items() if n not in varying
    }
    again = await reader.get(EVENTS, headers={"If-None-Match": get.headers["ETag"]})
    assert again.status_code == 304


async def test_the_rest_after_a_marker_is_streamed(
    reader: Reader, owner: asyncpg.Connection
) -> None:
    await fill(owner, 1000)
    first = await reader.get(EVENTS, params={"limit": 300})
    rest = await reader.get(EVENTS, params={"marker": first.headers["X-Next-Marker"]})
    assert numbers(first.content) + numbers(rest.content) == list(range(1, 1001))
    assert "Link" not in rest.headers


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_streams_are_encoded(
    reader: Reader, owner: asyncpg.Connection, encoding: str
) -> None:
    await fill(owner, 3000)
    async with requested(
        str(reader.api.base_url), EVENTS, f"Accept-Encoding: {encoding}"
    ) as source:
        content = answer(await source.read())
    assert f"content-encoding: {encoding}".encode() in content.head
    assert content.whole
    decode = cramjam.zstd.decompress if encoding == "zstd" else gunzipped
    assert numbers(bytes(decode(content.body))) == list(range(1, 3001))


def gunzipped(content: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    body = stream.decompress(content)
    assert stream.eof
    return body


async def test_a_stream_is_one_snapshot_with_its_tag(
    reader: Reader, owner: asyncpg.Connection, writer: BatchWriter
) -> None:
    await fill(owner, 20000)
    before = (await reader.api.get(EVENTS, params={"limit": 1})).json()
    async with requested(str(reader.api.base_url)) as source:
        content = await source.readuntil(b"\r\n\r\n")
        # Events that are not sent yet change, and a new one precedes them.
        await owner.execute(
            "UPDATE execution_events.event SET body = convert_to(replace("
            "convert_from(body, 'UTF8'), 'Normal', 'Changed'), 'UTF8')"
        )
        await writer.store(batch(log([named("first", -1), named("last", 2**30)])))
        content += await source.read()
    assert answer(content).whole
    assert numbers(answer(content).body) == list(range(1, 20001))
    assert before[0] == json.loads(answer(content).body)[0]
    tag = re.search(rb'etag: (W/"[^"]+")', content)
    assert tag is not None
    # The tag is of that snapshot: the list has changed since.
    headers = {"If-None-Match": tag[1].decode()}
    async with reader.api.stream("GET", EVENTS, headers=headers) as response:
        assert response.status_code == 200


async def test_a_streams_events_are_of_the_snapshot_of_its_revisions(
    database: Database, writer: BatchWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The execution changes between the two statements."""
    await writer.store(batch(log([named("a")])))
    changes = [batch(log([named("a")], begin=1))]
    fetchval = asyncpg.Connection.fetchval

    async def fetchval_then_change(*arguments: Any, **options: Any) -> Any:
        value = await fetchval(*arguments, **options)
        if changes:
            await writer.store(changes.pop())
        return value

    async with EventReader.open(database.reader) as lists:
        before = await lists.page("execution-1", Selection(), None, 10)
        monkeypatch.setattr(asyncpg.Connection, "fetchval", fetchval_then_change)
        async with lists.stream("execution-1", Selection(), None) as stream:
            assert not changes
            assert stream.revisions == before.revisions
            assert [bodies async for bodies in stream.batches] == [before.bodies]
        after = await lists.page("execution-1", Selection(), None, 10)
    assert decode(after.bodies[0]).count == 2


async def test_a_caller_that_stops_reading_is_cut_off(
    database: Database, owner: asyncpg.Connection, admin: asyncpg.Connection
) -> None:
    """The snapshot and the connection are released, and the body is not valid JSON."""
    await fill(owner, 60000)
    async with limited(database, StreamTimeouts(chunk=0.5)) as address:
        async with requested(address) as stuck:
            content = await stuck.readuntil(b"\r\n\r\n")
            assert await transactions(admin) == 1

            async def cut() -> bool:
                return await transactions(admin) == 0

            # Long before the server's own bound.
            async with asyncio.timeout(10):
                await until(cut, "the stuck stream is cut")
            content += await stuck.read()
        assert not answer(content).whole
        with pytest.raises(ValueError, match=r"."):  # Truncated within a character, or within JSON.
            json.loads(answer(content).body)
        async with requested(address) as source:
            assert answer(await source.read()).whole


async def test_a_disconnect_ends_the_stream(
    database: Database,
    owner: asyncpg.Connection,
    admin: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Otherwise it might end before the check.
    monkeypatch.setattr(listing, "_STREAM_BATCH", 1)
    await fill(owner, 100_000)
    async with limited(database, StreamTimeouts()) as address:
        async with requested(address) as source:
            await source.readuntil(b"\r\n\r\n")
            assert await transactions(admin) == 1

        async def ended() -> bool:
            return await transactions(admin) == 0

        async with asyncio.timeout(3):
            await until(ended, "the stream has ended")
        async with requested(address, f"{EVENTS}?q=nothing") as source:
            assert (await source.read()).endswith(b"[]")


async def test_a_stream_ends_at_its_timeout(database: Database, owner: asyncpg.Connection) -> None:
    await fill(owner, 60000)
    async with limited(database, StreamTimeouts(total=1)) as address:
        async with requested(address) as slow:
            content = await slow.read(1024)
            async with asyncio.timeout(DEADLINE):
                while part := await slow.read(1024):
                    content += part
                    if len(content) < 500_000:
                        await asyncio.sleep(0.01)
        assert not answer(content).whole


async def test_a_stream_is_cut_when_the_database_fails(
    database: Database, owner: asyncpg.Connection, admin: asyncpg.Connection
) -> None:
    await fill(owner, 60000)
    async with limited(database, StreamTimeouts()) as address:
        async with requested(address) as source:
            content = await source.readuntil(b"\r\n\r\n")
            await admin.execute(
                # Until the sessions have ended, as the next request could get one of them.
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            content += await source.read()
        assert content.startswith(b"HTTP/1.1 200 OK")
        assert not answer(content).whole
        async with requested(address) as source:
            assert answer(await source.read()).whole


async def test_slow_streams_delay_no_page(database: Database, owner: asyncpg.Connection) -> None:
    await fill(owner, 60000)
    async with limited(database, StreamTimeouts()) as address, requested(address) as stuck:
        await stuck.readuntil(b"\r\n\r\n")
        async with requested(address, f"{EVENTS}?limit=1") as source:
            content = await source.read()
        assert content.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
async def test_a_long_stream_uses_little_memory(
    database: Database, owner: asyncpg.Connection, unused_port: int
) -> None:
    """Runs in a process of its own, for its peak memory."""
    await fill(owner, 100_000)
    settings = configured(database_url=database.reader, reader_port=unused_port, management_port=0)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "execution_events.cli", "reader"), env=environment(settings)
    )
    try:
        address = f"http://127.0.0.1:{unused_port}"
        async with httpx.AsyncClient(base_url=address, timeout=DEADLINE) as client:

            async def serves() -> bool:
                try:
                    return (await client.get(EVENTS, params={"limit": 1})).status_code == 200
                except httpx.TransportError:
                    return False

            await until(serves, "the reader serves")
            for path in (EVENTS, f"{EVENTS}?lang=zh"):
                await client.get(path, params={"limit": 100})
            before = peak_bytes(process.pid)
            for encoding in ("identity", "gzip", "zstd"):
                size = 0
                headers = {"Accept-Encoding": encoding}
                async with client.stream("GET", EVENTS, headers=headers) as response:
                    async for part in response.aiter_raw():
                        size += len(part)
                assert encoding != "identity" or size > 50_000_000
            assert peak_bytes(process.pid) - before < 20 * 2**20
    finally:
        process.terminate()
        await process.wait()


def peak_bytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024
