"""The reader behind nginx and HAProxy, with the settings of `infra/README.md`."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import asyncpg
import httpx
import pytest

from tests.support import golden
from tests.support.consumers import until
from tests.support.databases import Database
from tests.support.filling import fill
from tests.support.proxies import HAPROXY, NGINX, default_of_nginx, documented, haproxy, nginx
from tests.support.readers import EVENTS, EXECUTIONS, Reader, named, reading
from tests.support.records import Log
from tests.support.seed import SEED_BODY, SEED_EXECUTION
from tests.support.watching import Watcher

pytestmark = [
    pytest.mark.more,
    pytest.mark.skipif(
        NGINX is None or HAPROXY is None, reason="`make proxies` installs nginx and HAProxy"
    ),
]

Through = Callable[[Reader], AbstractAsyncContextManager[httpx.AsyncClient]]

EVENTS_STORED = 40_000
"""More than the buffers between a reader and its client hold."""


def _documented(proxy: str) -> Through:
    return partial({"nginx": nginx, "haproxy": haproxy}[proxy], settings=documented(proxy))


DOCUMENTED = [pytest.param(_documented(proxy), id=proxy) for proxy in ("nginx", "haproxy")]
each_proxy = pytest.mark.parametrize("through", DOCUMENTED)
with_http_1_0 = pytest.mark.parametrize(
    "through",
    [*DOCUMENTED, pytest.param(partial(nginx, settings=default_of_nginx()), id="nginx, HTTP/1.0")],
)


@with_http_1_0
async def test_the_seed_is_the_same_byte_for_byte(
    reader: Reader, written: Log, through: Through
) -> None:
    occurrences = [case.occurrence for case in golden.load("seed.json")]
    await written.add(*(occurrence for occurrence in occurrences if occurrence is not None))
    path = f"/v1/executions/{SEED_EXECUTION}/events"
    direct = await reader.get(path)
    async with through(reader) as proxy:
        response = await proxy.get(path)
        assert response.text == direct.text == SEED_BODY
        for name in ("ETag", "Content-Type", "Cache-Control", "Vary"):
            assert response.headers[name].removeprefix("W/") == direct.headers[name].removeprefix(
                "W/"
            )
        again = await proxy.get(path, headers={"If-None-Match": response.headers["ETag"]})
        assert again.status_code == 304
        page = await proxy.get(path, params={"limit": 1})
        assert page.headers["Link"].endswith('; rel="next"')
        wrong = await proxy.get(path, params={"limit": 0})
        assert wrong.json()["error_code"] == "EE.0400"
        listed = await proxy.get(EXECUTIONS)
        assert listed.json() == await reader.executions()
        assert listed.headers["Content-Type"] == "application/json"


@with_http_1_0
async def test_a_long_list_is_whole(
    reader: Reader, owner: asyncpg.Connection, through: Through
) -> None:
    await fill(owner, EVENTS_STORED)
    async with through(reader) as proxy:
        assert len((await proxy.get(EVENTS)).json()) == EVENTS_STORED


@with_http_1_0
async def test_a_cut_list_is_an_error(
    reader: Reader, owner: asyncpg.Connection, admin: asyncpg.Connection, through: Through
) -> None:
    await fill(owner, EVENTS_STORED)
    headers = {"Accept": "application/x-ndjson"}
    async with through(reader) as proxy, proxy.stream("GET", EVENTS, headers=headers) as response:
        assert response.status_code == 200
        lines = response.aiter_lines()
        received = [await anext(lines)]
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = 'execution_events_reader'"
        )
        with pytest.raises(httpx.TransportError):
            received += [line async for line in lines]
    assert len(received) < EVENTS_STORED
    assert json.loads(received[0])


@each_proxy
async def test_a_watch_receives_changes_at_once(
    reader: Reader, written: Log, through: Through
) -> None:
    await written.add(named("a"))
    async with through(reader) as proxy, Watcher().watching(proxy, EVENTS) as watch:
        await watch.next(2)
        for name in ("b", "c"):
            await written.add(named(name))
            assert (await watch.next())[0].data["metadata"]["name"] == name


async def test_haproxy_notices_a_stop_while_the_reader_serves(database: Database) -> None:
    async with (
        reading(database.reader, drain_delay=5) as reader,
        haproxy(reader, documented("haproxy")) as proxy,
    ):
        reader.stop.set()

        async def away() -> bool:
            response = await proxy.get(EVENTS)
            # HAProxy's own error.
            if response.status_code == 503:
                return True
            assert (response.status_code, response.content) == (200, b"[]")
            return False

        await until(away, "HAProxy takes the reader out")
        assert (await reader.api.get(EVENTS)).status_code == 200
