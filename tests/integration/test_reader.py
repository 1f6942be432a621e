"""The reader over real sockets and the real database, held to its OpenAPI document."""

import asyncio
import json
import re
import socket
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from execution_events.errors import ExecutionEventsError, HaltError
from execution_events.reader.service import run_reader
from execution_events.settings import Settings
from execution_events.store.write.batches import BatchWriter
from tests.faults.proxy import Proxy
from tests.support import databases
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database
from tests.support.golden import SCHEMAS
from tests.support.logs import logging_to
from tests.support.readers import EVENTS, Reader, reading
from tests.support.records import batch, log, occurrence
from tests.support.servers import Servers

# Refused requests.


@pytest.mark.parametrize(
    "execution_id",
    [
        *(
            "a" * 129,
            "a" * 3000,
            "%00",
            "a%00",
            "a%0A",
            "%0Aa",
            "%20",
            "a b",
            "*",
            "%25",
            "~",
            "a,b",
        ),
        *("%ff", "%C3%28", "%ED%A0%80", "%E5%85%83", "%F0%9F%98%80", "%EF%BC%A1", "a;b", "$(a)"),
    ],
)
async def test_a_wrong_execution_id_is_refused(idle: Reader, execution_id: str) -> None:
    response = await idle.get(f"/v1/executions/{execution_id}/events")
    assert response.status_code == 400
    assert response.json()["error_code"] == "EE.0400"
    assert response.json()["error_msg"].startswith("execution_id: ")


@pytest.mark.parametrize("execution_id", ["a", "a" * 128, "A-z_0.9:", "..a", "%41%2D", "-", ":"])
async def test_an_unknown_execution_has_no_events(idle: Reader, execution_id: str) -> None:
    response = await idle.get(f"/v1/executions/{execution_id}/events")
    assert (response.status_code, response.content) == (200, b"[]")
    assert response.headers["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("Limit=1", '"Limit"; did you mean limit?'),
        ("elem_id=a", '"elem_id"; did you mean elemId?'),
        ("exclude-Reason=a", '"exclude-Reason"; did you mean excludeReason?'),
        ("raeson=a", '"raeson"; did you mean reason?'),
        ("lastEventId=a", '"lastEventId"'),
        ("verbose", '"verbose"'),
        ("=1", '""'),
        ("a%0d%0ab=1", r'"a\r\nb"'),
        ("%00%1b%5B31m=1", r'"\u0000\u001b[31m"'),
        ("%E5%85%83=1", r'"\u5143"'),
        ("x" * 5000 + "=1", '"' + "x" * 64 + '"'),
    ],
    ids=[
        "another case",
        "underscore",
        "dash",
        "swapped",
        "of a watch",
        "no value",
        "no name",
        "lines",
        "escapes",
        "not ASCII",
        "long",
    ],
)
async def test_an_unknown_parameter_is_refused_by_its_name(
    idle: Reader, query: str, shown: str
) -> None:
    response = await idle.get(f"{EVENTS}?{query}")
    assert response.status_code == 400
    assert response.json() == {
        "error_code": "EE.0400",
        "error_msg": f"unknown parameter {shown}",
    }


# Hostile queries and the beginning of each error; none of them reaches the database.
HOSTILE = {
    "limit=0": "limit: ",
    "limit=1001": "limit: ",
    "limit=-1": "limit: ",
    "limit=%2B1": "limit: ",
    "limit=1e2": "limit: ",
    "limit=1.0": "limit: ",
    "limit=0x10": "limit: ",
    "limit=%D9%A1": "limit: ",
    "limit= 1": "limit: ",
    "limit=": "limit: ",
    "limit": "limit: ",
    "limit=" + "9" * 5000: "limit: ",
    "limit=1&limit=1": "limit: expected at most once",
    "limit=1&%6Cimit=2": "limit: expected at most once",
    "order=asc&order=asc": "order: expected at most once",
    "since=2026-01-01T00:00:00Z&since=2026-01-01T00:00:00Z": "since: expected at most once",
    "until=2026-01-01T00:00:00Z&until=x": "until: expected at most once",
    "q=a&q=b": "q: expected at most once",
    "lang=zh&lang=en": "lang: expected at most once",
    "marker=a&marker=b": "marker: expected at most once",
    "order=ASC": "order: ",
    "order=": "order: ",
    "order=asc;--": "order: ",
    "order=place)--": "order: ",
    "lang=fr": "lang: ",
    "lang=ZH": "lang: ",
    "lang=": "lang: ",
    "times=micro&times=micro": "times: expected at most once",
    "times=Micro": "times: expected second or micro",
    "times=": "times: ",
    "since=yesterday": "since: ",
    "since=2026-01-01": "since: ",
    "since=2026-01-01T00:00:00": "since: ",
    "since=2026-01-01T00:00:00+08:00": "since: ",
    "since=2026-02-30T00:00:00Z": "since: ",
    "since=2026-01-01T00:00:60Z": "since: ",
    "since=0001-01-01T00:00:00Z": "since: ",
    "since=9999-12-31T23:59:59-01:00": "since: ",
    "since=infinity": "since: ",
    "until=": "until: ",
    "until=now()": "until: ",
    "type=": "type: ",
    "type": "type: ",
    "type=%00": "type: ",
    "type=a%00b": "type: ",
    "type=%ff": 'parameter "type": expected UTF-8',
    "type=%C3%28": 'parameter "type": expected UTF-8',
    "type=%ED%A0%80": 'parameter "type": expected UTF-8',
    "type=%C0%80": 'parameter "type": expected UTF-8',
    "%ff=1": r'parameter "\ufffd": expected UTF-8',
    "type=" + "a" * 257: "type: ",
    "type=" + "%E5%85%83" * 257: "type: ",
    "excludeReason=" + "a" * 257: "excludeReason: ",
    "&".join(["type=a"] * 33): "type: ",
    "q=": "q: ",
    "q=%00": "q: ",
    "q=" + "a" * 257: "q: ",
    "q=" + "a" * 9000: "query string: ",
    "&" * 9000: "query string: ",
    "marker=": "marker: ",
    "marker=AQ": "marker: ",
    "marker=AQ==": "marker: ",
    "marker=%00": "marker: ",
    "marker=%E5%85%83": "marker: ",
    "marker=../../etc/passwd": "marker: ",
    "marker=' OR 1=1--": "marker: ",
    "marker=" + "A" * 1025: "marker: ",
    "marker=" + "A" * 8000: "marker: ",
    "offset=1": 'unknown parameter "offset"',
    "Type=a": 'unknown parameter "Type"',
    "type[]=a": 'unknown parameter "type[]"',
    "namespace=other": 'unknown parameter "namespace"',
    "execution_id=other": 'unknown parameter "execution_id"',
    "type%0a=a": r'unknown parameter "type\n"',
    "type%00=a": r'unknown parameter "type\u0000"',
    "'; DROP TABLE event; --=1": 'unknown parameter "\'; DROP TABLE event; --"',
}


@pytest.mark.parametrize("query", HOSTILE, ids=lambda query: query[:40])
async def test_an_invalid_parameter_is_refused_by_its_name(idle: Reader, query: str) -> None:
    response = await idle.get(f"{EVENTS}?{query.replace(' ', '%20')}")
    assert response.status_code == 400
    assert response.json()["error_code"] == "EE.0400"
    assert response.json()["error_msg"].startswith(HOSTILE[query])
    assert len(response.json()["error_msg"]) < 300


# Odd but valid queries, which match nothing.
ODD = [
    "type=' OR '1'='1",
    "type='; DROP TABLE execution_events.event; --",
    "type=$1",
    "type={column}",
    "type=%25s",
    "type=%0a%0dforged",
    "type=%",
    "type=%zz",
    "type=a;type=b",
    "type=a=b",
    "q=%25",
    "q=_",
    "q=\\",
    "q=' || pg_sleep(10) || '",
    "reason=%23%23",
    "type=" + "a" * 256,
    "type=" + "%F0%9F%98%80" * 256,
    "&".join(f"type={number}" for number in range(32)),
    "&&limit=1&",
    "since=9999-12-31T23:59:59.999999999Z",
    "until=1970-01-01T00:00:00Z",
    "since=2026-01-01T00:00:00%2B08:00&until=2025-01-01T00:00:00Z",
]


@pytest.mark.parametrize("query", ODD, ids=lambda query: query[:40])
async def test_odd_values_match_nothing(still: Reader, query: str) -> None:
    response = await still.get(f"{EVENTS}?{query.replace(' ', '%20')}")
    assert response.status_code == 200
    assert len(response.json()) == (query == "&&limit=1&")
    assert len(await still.events()) == 3


@pytest.mark.parametrize(
    "path",
    ["/v1", f"{EVENTS}%0A", "/v1/executions//events", "/v1/executions/a%2Fb/events",
     "/v1/executions/a/b/events", "/v1/executions/a%00/event", "/docs/", "/metrics", "/livez"],
)  # fmt: skip
async def test_other_paths_are_404(idle: Reader, path: str) -> None:
    response = await idle.get(path)
    assert response.status_code == 404
    assert response.json() == {
        "error_code": "EE.0404",
        "error_msg": "not found; executions are at GET /v1/executions, events at GET"
        " /v1/executions/{execution_id}/events",
    }


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/executions/a", "/v1/executions/a/", "/v1/executions/a/events/"),
        *("/v1/executions/a/event", "/v1/execution/a/events", "/executions/a/events"),
        *("/V1/Executions/a/Events", "/v2/executions/a/events"),
    ],
)
async def test_a_mistyped_path_is_answered_with_the_right_one(idle: Reader, path: str) -> None:
    response = await idle.get(path)
    assert response.status_code == 404
    text = "not found; did you mean /v1/executions/a/events?"
    assert response.json()["error_msg"] == text


@pytest.mark.parametrize(
    "path",
    ["/v1/executions/", "/v1/execution", "/executions", "/V1/Executions//", "/v1/executions%0A"],
)
async def test_a_mistyped_path_of_executions_is_answered_with_the_right_one(
    idle: Reader, path: str
) -> None:
    response = await idle.get(path)
    assert response.status_code == 404
    right = "%0A" not in path
    assert response.json()["error_msg"].startswith(
        "not found; did you mean /v1/executions?" if right else "not found; executions are at GET"
    )


async def test_the_root_names_the_api_its_contract_and_its_reference(idle: Reader) -> None:
    response = await idle.api.get("/")
    assert response.status_code == 200
    root = response.json()
    assert root["executions"] == "/v1/executions"
    assert root["events"] == "/v1/executions/{execution_id}/events"
    paths = (await idle.api.get(root["contract"])).json()["paths"]
    assert paths.keys() >= {root["executions"], root["events"]}
    assert (await idle.api.get(root["reference"])).headers["Content-Type"].startswith("text/html")


async def test_the_reference_is_served_without_any_other_host(idle: Reader) -> None:
    page = await idle.api.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    files = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
    assert len(files) == 3
    for name in files:
        file = await idle.api.get(f"/{name}")
        assert ("Content-Encoding" in file.headers) == ("swagger" in name)
        assert file.headers["X-Request-Id"]
        whole = await idle.api.get(f"/{name}", headers={"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in whole.headers
        assert whole.content == file.content
        head = await idle.api.head(f"/{name}")
        assert head.headers["Content-Length"] == file.headers["Content-Length"]
    for path in ("/docs/README.md", "/docs/..%2fapp.py", "/docs/swagger-ui.css.gz", "/docs/"):
        assert (await idle.api.get(path)).status_code == 404
    assert (await idle.api.post("/docs")).status_code == 405


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "text/*", "*/*;q=0"])
async def test_an_accept_header_that_nothing_satisfies_is_406(idle: Reader, accept: str) -> None:
    response = await idle.get(EVENTS, headers={"Accept": accept})
    assert response.status_code == 406
    assert response.json() == {
        "error_code": "EE.0406",
        "error_msg": "Accept: expected application/json, application/x-ndjson, text/event-stream"
        " or */*",
    }


async def test_the_openapi_document_is_served(idle: Reader) -> None:
    response = await idle.api.get("/openapi.json")
    assert response.headers["Content-Type"] == "application/json"
    assert response.content == (SCHEMAS / "openapi.json").read_bytes()
    assert (await idle.api.post("/openapi.json")).json()["error_code"] == "EE.0405"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_only_get_and_head_are_allowed(idle: Reader, method: str) -> None:
    response = await idle.request(method, EVENTS, content=b"[]")
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD"}
    assert response.json()["error_code"] == "EE.0405"


async def test_head_has_the_headers_of_get(idle: Reader) -> None:
    for path in (EVENTS, "/v1/executions/*/events"):
        get, head = await idle.get(path), await idle.request("HEAD", path)
        varying = {"x-request-id", "date"}
        assert head.status_code == get.status_code
        assert {n: v for n, v in head.headers.items() if n not in varying} == {
            n: v for n, v in get.headers.items() if n not in varying
        }


async def test_no_response_names_the_server_software(idle: Reader) -> None:
    for path in (EVENTS, "/nothing"):
        assert "server" not in (await idle.get(path)).headers


# Request ids and the log.


@pytest.mark.parametrize("sent", ["a", "A-z.0_9:", "a" * 128])
async def test_the_request_id_of_the_caller_is_kept(idle: Reader, sent: str) -> None:
    for path in (EVENTS, "/nothing"):
        response = await idle.get(path, headers={"X-Request-Id": sent})
        assert response.headers.get_list("X-Request-Id") == [sent]


@pytest.mark.parametrize(
    "sent", [b"", b"a" * 129, b"a b", b"a\tb", b"a\x85b", b"\xe5\x85\x83", b"a=b", b'"', b"%0A"]
)
async def test_a_request_id_that_is_not_safe_to_log_is_replaced(idle: Reader, sent: bytes) -> None:
    headers = [(b"x-request-id", sent)]
    answers = [await idle.get(EVENTS, headers=headers) for _ in range(2)]
    ids = {answer.headers["X-Request-Id"] for answer in answers}
    assert len(ids) == 2
    assert all(new.isalnum() and new.isascii() for new in ids)


@pytest.mark.tampers
async def test_a_failure_is_logged_with_the_request_id_and_hidden_from_the_caller(
    reader: Reader, owner: asyncpg.Connection
) -> None:
    await owner.execute("ALTER TABLE execution_events.event RENAME TO moved")
    with logging_to("json") as logged:
        response = await reader.get(EVENTS, headers={"X-Request-Id": "request-1"})
    assert response.status_code == 500
    assert response.json() == {
        "error_code": "EE.0500",
        "error_msg": "internal error; search the service log for this request id",
    }
    [failure] = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert (failure["level"], failure["request_id"]) == ("error", "request-1")
    assert "42P01" in failure["traceback"]


# An unavailable database, and the management port.


async def test_the_reader_serves_again_when_its_database_returns(
    database: Database, writer: BatchWriter, unused_port: int
) -> None:
    """It starts without one, is not ready, and recovers each time the database returns."""
    await writer.store(batch(log([occurrence()])))
    url = urlsplit(database.reader)
    credentials = url.netloc.rpartition("@")[0]
    through = url._replace(netloc=f"{credentials}@127.0.0.1:{unused_port}").geturl()

    async with reading(through) as reader:

        async def away() -> bool:
            ready = await reader.management.get("/readyz")
            if ready.status_code == 200:
                return False
            assert ready.status_code == 503
            [reason] = ready.json()["reasons"]
            assert "PostgreSQL" in reason
            assert databases.PASSWORD not in reason
            response = await reader.get(EVENTS)
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "1"
            assert response.json() == {
                "error_code": "EE.0503",
                "error_msg": "database unavailable; retry later",
            }
            return True

        assert await away()
        for _ in range(2):
            async with Proxy(url.port or 5432, unused_port):
                ready = await reader.management.get("/readyz")
                assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})
                assert len(await reader.events()) == 1
            await until(away, "the reader notices that the database is unavailable")
        assert (await reader.management.get("/livez")).status_code == 200


async def test_a_list_that_exceeds_its_timeout_is_cancelled(
    reader: Reader, writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    """PostgreSQL itself cancels the query after 10 seconds."""
    await writer.store(batch(log([occurrence()])))
    tag = (await reader.get(EVENTS)).headers["ETag"]
    tables = await owner.fetchval(
        "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables"
        " WHERE schemaname = 'execution_events'"
    )
    async with owner.transaction():
        await owner.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
        with logging_to("json") as logged:
            late = await asyncio.gather(
                reader.get(EVENTS),
                reader.get(EVENTS, params={"limit": 1}),
                reader.request("HEAD", EVENTS),
                reader.get(EVENTS, headers={"If-None-Match": tag}),
            )
    for response in late:
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        if response.request.method == "GET":
            assert response.json() == {
                "error_code": "EE.0503",
                "error_msg": "database query timed out; retry later or narrow the request",
            }
    entries = [json.loads(line) for line in logged.getvalue().splitlines()]
    # The probe waits for these locks as well, and says so.
    entries = [entry for entry in entries if entry["event"] != "peer_unavailable"]
    assert [entry["event"] for entry in entries] == ["query_timed_out"] * len(late)
    # PostgreSQL's own text about a statement.
    assert all("57014" in entry["error"] for entry in entries)
    assert len(await reader.events()) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM schema_version", "run `execution-events migrate`"),
        (
            "INSERT INTO schema_version VALUES (2, 'later', '', '9999.1')",
            "requires execution-events 9999.1",
        ),
    ],
    ids=["older", "newer"],
)
async def test_the_reader_is_not_ready_on_another_schema(
    reader: Reader, owner: asyncpg.Connection, change: str, reason: str
) -> None:
    assert (await reader.management.get("/readyz")).status_code == 200
    await owner.execute(f"SET search_path = execution_events; {change}")
    response = await reader.management.get("/readyz")
    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert reason in response.json()["reasons"][0]
    assert (await reader.management.get("/livez")).status_code == 200


async def test_the_reader_does_not_start_on_an_empty_database(servers: Servers) -> None:
    async with databases.empty(servers.administrator_url) as database:
        with pytest.raises(HaltError, match="run `execution-events migrate`"):
            async with reading(database.owner):
                pass


async def test_requests_are_counted_and_timed(reader: Reader) -> None:
    await reader.get(EVENTS)
    await reader.get(EVENTS)
    await reader.get(f"{EVENTS}?limit=0")
    await reader.get("/nothing")

    response = await reader.management.get("/metrics")

    assert response.headers["Content-Type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert {"execution_events_requests", "execution_events_request_seconds"} <= families.keys()
    totals = {
        sample.labels["status"]: sample.value
        for sample in families["execution_events_requests"].samples
        if sample.name.endswith("_total")
    }
    assert totals == {"200": 2, "400": 1, "404": 1}
    seconds = {
        sample.name: sample.value for sample in families["execution_events_request_seconds"].samples
    }
    assert seconds["execution_events_request_seconds_count"] == 4
    assert 0 < seconds["execution_events_request_seconds_sum"] < DEADLINE


async def test_the_management_port_serves_no_events(idle: Reader) -> None:
    assert (await idle.management.get("/livez")).json() == {"live": True}
    assert (await idle.management.get(EVENTS)).status_code == 404


# The address that it serves.


async def refused(settings: Settings) -> str:
    """Return the error of a reader that must not start."""
    stop = asyncio.Event()
    stop.set()
    with pytest.raises(ExecutionEventsError) as error:
        await run_reader(settings, stop)
    return str(error.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "no-host.invalid"])
async def test_without_tokens_only_loopback_addresses_are_served(
    database: Database, host: str
) -> None:
    settings = configured(
        database_url=database.reader, reader_host=host, reader_port=0, management_port=0
    )
    assert (await refused(settings)).startswith("EXECUTION_EVENTS_READER_HOST: ")


async def test_an_occupied_port_is_named(idle: Reader, database: Database) -> None:
    taken = idle.api.base_url.port
    settings = configured(database_url=database.reader, reader_port=taken or 0, management_port=0)
    error = await refused(settings)
    assert error.startswith(f"cannot listen on 127.0.0.1:{taken}: ")
    assert "EXECUTION_EVENTS_READER_PORT" in error


@pytest.mark.parametrize(
    ("host", "setting"), [("no-host.invalid", "HOST"), ("192.0.2.1", "HOST"), ("127.0.0.1", "PORT")]
)
async def test_an_error_of_the_management_address_names_its_setting(
    idle: Reader, database: Database, host: str, setting: str
) -> None:
    taken = idle.api.base_url.port
    settings = configured(
        database_url=database.reader,
        reader_port=0,
        management_host=host,
        management_port=taken,
    )
    error = await refused(settings)
    assert error.startswith(f"cannot listen on {host}:{taken}: ")
    assert f"EXECUTION_EVENTS_MANAGEMENT_{setting}" in error


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_the_management_port_serves_both_families(
    database: Database, unused_port: int
) -> None:
    given = {"management_host": "::", "management_port": unused_port}
    async with reading(database.reader, **given), httpx.AsyncClient() as client:
        for host in ("127.0.0.1", "[::1]"):
            response = await client.get(f"http://{host}:{unused_port}/livez")
            assert response.json() == {"live": True}
