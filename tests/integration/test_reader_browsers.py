"""Browsers: pages of other origins, DNS rebinding, and watches of their libraries."""

from collections.abc import AsyncIterator

import pytest

from tests.support.databases import Database
from tests.support.readers import EVENTS, EXECUTIONS, Reader, named, reading, reading_only
from tests.support.records import Log
from tests.support.servers import Servers
from tests.support.tokens import ONE, token_file
from tests.support.watching import Watcher
from tests.support.wire_http import exchange, parse_responses, request

PAGE = "https://console.example:8443"
OTHER = "http://localhost:3000"
EXPOSED = {"ETag", "Link", "Retry-After", "X-Next-Marker", "X-Request-Id"}

of_each_list = pytest.mark.parametrize("path", [EVENTS, EXECUTIONS], ids=["events", "executions"])


# Cross-origin requests.


@pytest.fixture(scope="module")
async def cross_origin(
    servers: Servers, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Reader]:
    """A reader with tokens for pages of two origins."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    path.write_text(token_file())
    events = (named("a", namespace="one"), named("b", namespace="one"))
    async with reading_only(
        servers,
        template_database,
        *events,
        reader_cors_origins=f"{PAGE},{OTHER}",
        tokens_file=str(path),
    ) as reader:
        yield reader


@of_each_list
@pytest.mark.parametrize("origin", [PAGE, OTHER])
async def test_pages_of_the_origins_may_read_responses(
    cross_origin: Reader, path: str, origin: str
) -> None:
    response = await cross_origin.get(path, params={"limit": 1}, headers={**ONE, "Origin": origin})
    assert len(response.json()) == 1
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert "Origin" in response.headers["Vary"]
    assert set(response.headers["Access-Control-Expose-Headers"].split(", ")) == EXPOSED
    assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        (EVENTS, {}, 401),
        (f"{EVENTS}?limit=0", ONE, 400),
        ("/nothing", ONE, 404),
        (f"{EVENTS}?q={'a' * 12288}", ONE, 414),
        (EXECUTIONS, {}, 401),
        (f"{EXECUTIONS}?limit=0", ONE, 400),
        (EXECUTIONS, {**ONE, "Accept": "text/event-stream"}, 406),
        (f"{EXECUTIONS}?state={'a' * 12288}", ONE, 414),
    ],
)
async def test_errors_can_be_read_too(
    cross_origin: Reader, path: str, token: dict[str, str], status: int
) -> None:
    response = await cross_origin.get(path, headers={**token, "Origin": PAGE})
    assert response.status_code == status
    assert response.headers["Access-Control-Allow-Origin"] == PAGE


@of_each_list
async def test_a_preflight_needs_no_token(cross_origin: Reader, path: str) -> None:
    wanted = "authorization,if-none-match,last-event-id,x-auth-token,x-request-id"
    response = await cross_origin.api.options(
        path,
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": wanted,
        },
    )
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == PAGE
    assert set(response.headers["Access-Control-Allow-Methods"].split(", ")) == {"GET", "HEAD"}
    allowed = response.headers["Access-Control-Allow-Headers"].lower().replace(" ", "").split(",")
    assert set(allowed) >= set(wanted.split(","))


@of_each_list
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "https://console.example",
        "http://console.example:8443",
        f"{PAGE}.evil.example",
        PAGE.upper(),
    ],
)
async def test_other_origins_may_not_read_responses(
    cross_origin: Reader, path: str, origin: str
) -> None:
    response = await cross_origin.get(path, headers={**ONE, "Origin": origin})
    preflight = await cross_origin.api.options(
        path, headers={"Origin": origin, "Access-Control-Request-Method": "GET"}
    )
    assert (response.status_code, preflight.status_code) == (200, 405)
    for answer in (response, preflight):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@of_each_list
async def test_by_default_no_other_origin_may_read_responses(idle: Reader, path: str) -> None:
    response = await idle.get(path, headers={"Origin": PAGE})
    assert not [name for name in response.headers if name.startswith("access-control")]


# DNS rebinding.


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8080", "127.0.0.1", "127.255.0.9:1", "[::1]", "[::1]:8080"],
)
async def test_without_tokens_loopback_hosts_are_served(still: Reader, host: str) -> None:
    for path, number in ((EVENTS, 3), (EXECUTIONS, 1)):
        response = await still.get(path, headers={"Host": host})
        assert len(response.json()) == number


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "localhost.", "127.1"),
        *("128.0.0.1", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "2130706433", ""),
        *("localhost:8080@evil.example", "127.0.0.1.evil.example", "localhost:x"),
    ],
)
async def test_without_tokens_other_hosts_are_refused(still: Reader, host: str) -> None:
    """The page of a site whose name was made to resolve to this machine sends that name."""
    for path in (EVENTS, EXECUTIONS):
        content = request(path).replace(b"Host: localhost", f"Host: {host}".encode())
        [answer] = parse_responses(await exchange(still.api.base_url, content))
        assert answer.status == 421
        assert b"wrong host" in answer.body


@of_each_list
async def test_with_tokens_every_host_is_served(cross_origin: Reader, path: str) -> None:
    response = await cross_origin.get(path, headers={**ONE, "Host": "events.example"})
    assert response.status_code == 200


# Watches.


async def test_a_watch_resumes_from_the_parameter_of_a_client_without_headers(
    reader: Reader, written: Log
) -> None:
    await written.add(named("a"))
    first = Watcher()
    async with first.watching(reader.api, EVENTS) as watch:
        await watch.next(2)
    await written.add(named("b"))
    async with Watcher().watching(reader.api, EVENTS, {"lastEventId": first.id}) as watch:
        [message] = await watch.next()
        assert (message.kind, message.data["metadata"]["name"]) == ("message", "b")
    # A polyfill sends an empty one at first.
    async with Watcher().watching(reader.api, EVENTS, {"lastEventId": ""}) as watch:
        assert [message.kind for message in await watch.next(2)] == ["reset", "message"]


async def test_the_header_counts_where_both_ids_are_sent(reader: Reader, written: Log) -> None:
    await written.add(named("a"))
    watcher = Watcher()
    async with watcher.watching(reader.api, EVENTS) as watch:
        await watch.next(2)
    old = watcher.id
    await written.add(named("b"))
    async with watcher.watching(reader.api, EVENTS) as watch:
        await watch.next()
    await written.add(named("c"))
    async with watcher.watching(reader.api, EVENTS, {"lastEventId": old}) as watch:
        assert [m.data["metadata"]["name"] for m in await watch.next()] == ["c"]


async def test_a_list_has_no_last_event_id(still: Reader) -> None:
    for accept in ("application/json", "application/x-ndjson", "*/*"):
        response = await still.get(f"{EVENTS}?lastEventId=a", headers={"Accept": accept})
        assert response.json()["error_msg"] == 'unknown parameter "lastEventId"'


async def test_no_middleware_may_compress_a_watch(still: Reader) -> None:
    """Compression holds changes back until its buffer is full."""
    async with Watcher().watching(still.api, EVENTS) as watch:
        cache_control = watch.response.headers["Cache-Control"]
    assert cache_control == "private, no-cache, no-transform"
    assert "no-transform" not in (await still.get(EVENTS)).headers["Cache-Control"]


async def test_a_watch_refuses_a_client_that_has_ended_its_input(still: Reader) -> None:
    content = await exchange(
        still.api.base_url, request(EVENTS, "Accept: text/event-stream"), half_closed=True
    )
    [answer] = parse_responses(content)
    assert answer.status == 400
    assert b"keep the connection open" in answer.body


async def test_pages_of_other_origins_may_watch(database: Database, written: Log) -> None:
    await written.add(named("a"))
    async with (
        reading(database.reader, reader_cors_origins=PAGE) as reader,
        Watcher().watching(reader.api, EVENTS, headers={"Origin": PAGE}) as watch,
    ):
        assert watch.response.headers["Access-Control-Allow-Origin"] == PAGE
        await watch.next(2)
