"""One caller's expensive requests leave connections and time to others."""

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from execution_events.store.read import events as listing
from execution_events.store.read.events import EventReader
from execution_events.store.read.executions import ExecutionSelection
from execution_events.store.read.selection import Selection
from tests.support.databases import Database
from tests.support.filling import fill, write
from tests.support.readers import EVENTS, reading
from tests.support.records import occurrence
from tests.support.tokens import ONE, TWO, token_file

ABSENT = "/v1/executions/execution-9/events"
SEARCHES = 60
CONCURRENT = 24
"""Searches at a time: thrice the connections, and few enough for the timeout of their queue."""
EVENTS_STORED = 12_000


async def test_another_tenants_empty_list_does_not_wait_for_expensive_searches(
    database: Database, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    message = "元素(job)开始. ## Element(job) starts. " * 100
    await write(
        owner,
        (
            occurrence(name=f"object.{number:06}", namespace="one", message=message)
            for number in range(EVENTS_STORED)
        ),
    )
    tokens = tmp_path / "tokens.json"
    tokens.write_text(token_file())
    async with (
        reading(database.reader, tokens_file=str(tokens)) as reader,
        httpx.AsyncClient(
            base_url=reader.api.base_url,
            timeout=httpx.Timeout(60, pool=None),
            limits=httpx.Limits(max_connections=CONCURRENT),
        ) as client,
    ):
        searches: list[float] = []

        async def search(number: int) -> None:
            started = time.perf_counter()
            # Distinct, so that none is in the cache, and matched by no event.
            params: dict[str, Any] = {"q": f"not in any event {number}"}
            response = await client.get(EVENTS, params=params, headers=ONE)
            assert (response.status_code, response.json()) == (200, [])
            searches.append(time.perf_counter() - started)

        # The connections are open and the statements prepared before.
        await asyncio.gather(*(search(-number) for number in range(8)))
        searches.clear()
        assert (await reader.api.get(ABSENT, headers=TWO)).json() == []

        waiting = {asyncio.create_task(search(number)) for number in range(SEARCHES)}
        seconds: list[float] = []
        while waiting:
            started = time.perf_counter()
            response = await reader.api.get(f"{ABSENT}?q={len(seconds)}", headers=TWO)
            seconds.append(time.perf_counter() - started)
            assert (response.status_code, response.json()) == (200, [])
            done, waiting = await asyncio.wait(waiting, timeout=0)
            for task in done:
                task.result()
        seconds.sort()
        p95, p99 = (seconds[math.ceil(len(seconds) * share) - 1] for share in (0.95, 0.99))
        search_time = min(searches)
        print(f"{len(seconds)} lists, p99 {p99 * 1000:.0f} ms; a search {search_time * 1000:.0f}")
        assert len(seconds) >= 10
        # A list that waited for a connection would wait until a search ends.
        assert p95 < search_time / 2


@pytest.mark.parametrize("way", ["page", "stream", "executions"])
async def test_a_caller_leaves_connections_to_others(
    database: Database, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Lists and streams have pools of their own; both are shared out."""
    monkeypatch.setattr(listing, "_STREAM_BATCH", 1)
    await fill(owner, 2)
    async with EventReader.open(database.reader, size=2, streams=2) as events:

        async def read(share: str | None) -> None:
            if way == "executions":
                await events.executions(ExecutionSelection(), None, 10, share)
            elif way == "page":
                await events.page("execution-1", Selection(), None, 10, share=share)
            else:
                async with events.stream("execution-1", Selection(), None, share=share) as stream:
                    assert [body async for bodies in stream.batches for body in bodies]

        pool = events._stream_pool if way == "stream" else events._pool
        async with pool.acquire("one"):
            late = asyncio.create_task(read("one"))
            async with asyncio.timeout(5):
                await read("two")
                await read(None)
            assert not late.done()
        await late
        assert not pool._shares
