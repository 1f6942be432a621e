"""The reader over real sockets and the real database, held to its OpenAPI document."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from execution_events.errors import HaltError, SettingsError
from execution_events.events import COUNT_MAX, Occurrence
from execution_events.observability import configure_logging
from execution_events.reader.service import run_reader
from execution_events.settings import Settings
from execution_events.store.batches import BatchWriter
from tests.support import databases, golden
from tests.support.backends import Servers
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database, administrator
from tests.support.golden import SCHEMAS
from tests.support.records import EPOCH, batch, log, occurrence

SEED = "/v1/executions/e19d3faf-9f04-9685-e5c0-fbe8d40b96cd/events"
EVENTS = "/v1/executions/execution-1/events"

OPENAPI = json.loads((SCHEMAS / "openapi.json").read_text(encoding="utf-8"))
OPERATIONS = OPENAPI["paths"]["/v1/executions/{execution_id}/events"]


class Reader(NamedTuple):
    """A running reader, and clients of its two ports."""

    api: httpx.AsyncClient
    management: httpx.AsyncClient

    async def get(self, path: str, **options: Any) -> httpx.Response:
        """The answer, once it is found to be one of the OpenAPI document."""
        return await self.request("GET", path, **options)

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = await self.api.request(method, path, **options)
        check_contract(response)
        return response

    async def events(self, path: str = EVENTS) -> list[dict[str, Any]]:
        response = await self.get(path)
        assert response.status_code == 200
        events: list[dict[str, Any]] = response.json()
        return events


def check_contract(response: httpx.Response) -> None:
    """Hold an answer to the OpenAPI document: its status, headers, type and body."""
    method = response.request.method.lower()
    documented = resolve(OPERATIONS.get(method, OPERATIONS["get"])["responses"])
    assert str(response.status_code) in documented, response.text
    answer = resolve(documented[str(response.status_code)])
    for name, header in answer.get("headers", {}).items():
        if resolve(header).get("required"):
            validate(response.headers[name], resolve(header)["schema"])
    if method == "head":
        assert response.content == b""
    else:
        content = answer["content"][response.headers["Content-Type"]]
        validate(json.loads(response.content), content["schema"])


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    target: dict[str, Any] = OPENAPI
    for part in node["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return target


def validate(instance: object, schema: dict[str, Any]) -> None:
    Draft202012Validator({**schema, "components": OPENAPI["components"]}).validate(instance)


class _Started(logging.Handler):
    """Waits for the line of the log in which a reader gives its addresses."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.fields: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "reader started":
            self.fields.set_result(record.__dict__["fields"])


@asynccontextmanager
async def reading(database_url: str) -> AsyncIterator[Reader]:
    """Run a reader; at the end it is stopped in order, and its errors are raised."""
    settings = Settings(database_url=database_url, reader_port=0, management_port=0)
    stop = asyncio.Event()
    service = asyncio.create_task(run_reader(settings, stop))
    try:
        fields = await addresses(service)
        async with (
            httpx.AsyncClient(base_url=fields["address"], timeout=DEADLINE) as api,
            httpx.AsyncClient(base_url=fields["management"], timeout=DEADLINE) as management,
        ):
            yield Reader(api, management)
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE):
            await service


async def addresses(service: asyncio.Task[None]) -> dict[str, str]:
    """Where a reader that is starting serves; its error, if it does not."""
    logger = logging.getLogger("execution_events.reader.service")
    level, started = logger.level, _Started()
    logger.addHandler(started)
    logger.setLevel(logging.INFO)
    try:
        waiting: list[asyncio.Future[Any]] = [service, started.fields]
        await asyncio.wait(waiting, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        if service.done():
            service.result()
        return started.fields.result()
    finally:
        logger.removeHandler(started)
        logger.setLevel(level)


@asynccontextmanager
async def forwarding(port: int, database_url: str) -> AsyncIterator[None]:
    """Pass what comes to `port` on to the database; at the end everything is cut."""
    target = urlsplit(database_url)
    pumps: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while content := await source.read(65536):
                sink.write(content)
        finally:
            sink.close()

    async def accept(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        other_source, other_sink = await asyncio.open_connection(
            target.hostname, target.port or 5432
        )
        pumps.add(asyncio.create_task(pump(source, other_sink)))
        pumps.add(asyncio.create_task(pump(other_source, sink)))

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await server.wait_closed()


@pytest.fixture
async def writer(database: Database) -> AsyncIterator[BatchWriter]:
    async with BatchWriter(database.writer, "events") as writer:
        await writer.begin_partition(0, 0, "cluster")
        yield writer


@pytest.fixture
async def owner(database: Database) -> AsyncIterator[asyncpg.Connection]:
    async with administrator(database.owner) as connection:
        yield connection


@pytest.fixture
async def reader(database: Database) -> AsyncIterator[Reader]:
    async with reading(database.reader) as reader:
        yield reader


@pytest.fixture(scope="module")
async def idle(servers: Servers, template_database: str) -> AsyncIterator[Reader]:
    """A reader of an empty database that no test changes."""
    async with (
        databases.cloned(servers.administrator_url, template_database) as database,
        reading(database.reader) as reader,
    ):
        yield reader


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def named(name: str, seconds: float = 0, **fields: object) -> Occurrence:
    moment = at(seconds)
    return occurrence(
        **{"name": name, "first_timestamp": moment, "last_timestamp": moment, **fields}
    )


# What is listed.


async def test_the_seed_execution_byte_for_byte(reader: Reader, writer: BatchWriter) -> None:
    first, second, third = [
        case.occurrence for case in golden.load("seed.json") if case.occurrence is not None
    ]
    await writer.store(batch(log([third, first, second])))

    response = await reader.get(SEED)

    assert response.headers["Content-Type"] == "application/json"
    assert response.content.decode() == (
        '[{"metadata":{"name":"gcs-exec-3-08-20-144951.154c848add38e9f9",'
        '"namespace":"c51567523b744d098a8a81ede51894ac"},'
        '"involvedObject":{"name":"gcs-exec-3-08-20-144951",'
        '"namespace":"c51567523b744d098a8a81ede51894ac"},'
        '"reason":"执行成功##SuccessfulFinish",'
        '"message":"元素(job-a-init)执行create成功.'
        ' ## Element(job-a-init) execute Action: create successfully",'
        '"firstTimestamp":"2018-08-20T06:41:44Z","lastTimestamp":"2018-08-20T06:41:44Z",'
        '"count":1,"type":"Normal","elemType":"KubeDAG.init","elemId":"job-a-init",'
        '"actionName":"create"},'
        '{"metadata":{"name":"gcs-exec-3-08-20-144951.154c848ade084c88",'
        '"namespace":"c51567523b744d098a8a81ede51894ac"},'
        '"involvedObject":{"name":"gcs-exec-3-08-20-144951",'
        '"namespace":"c51567523b744d098a8a81ede51894ac"},'
        '"reason":"启动##ActionStart",'
        '"message":"元素(job-c-init)开始执行(create)流程.'
        ' ## Element(job-c-init) start to Action(create).",'
        '"firstTimestamp":"2018-08-20T06:41:44Z","lastTimestamp":"2018-08-20T06:41:44Z",'
        '"count":1,"type":"Normal","elemType":"KubeDAG.init","elemId":"job-c-init",'
        '"actionName":"create"},'
        '{"metadata":{"name":"gcs-exec-3-08-20-144951.154c848ade7ed58e",'
        '"namespace":"c51567523b744d098a8a81ede51894ac"},'
        '"involvedObject":{"name":"gcs-exec-3-08-20-144951",'
        '"namespace":"c51567523b744d098a8a81ede51894ac"},'
        '"reason":"启动##ActionStart",'
        '"message":"元素(job-d-init)开始执行(create)流程.'
        ' ## Element(job-d-init) start to Action(create).",'
        '"firstTimestamp":"2018-08-20T06:41:44Z","lastTimestamp":"2018-08-20T06:41:44Z",'
        '"count":1,"type":"Normal","elemType":"KubeDAG.init","elemId":"job-d-init",'
        '"actionName":"create"}]'
    )


async def test_order_is_of_creation_then_name_then_namespace_by_byte(
    reader: Reader, writer: BatchWriter
) -> None:
    ordered = [
        named("z", -0.002),
        named("z", -0.001, namespace="other"),
        named("A.1"),
        named("B.1"),
        named("a.1"),
        named("é.1"),
        named("元.1", namespace="n"),
        named("元.1", namespace="租户"),
        named("\uffee.1"),
        named("😀.1"),  # Before the one above where text is compared as UTF-16.
        named("A.0", 0.000001),
    ]
    await writer.store(batch(log(ordered[::-1])))
    assert [event["metadata"] for event in await reader.events()] == [
        {"name": event.name, "namespace": event.namespace} for event in ordered
    ]


async def test_recurrences_leave_the_order_as_it_was(reader: Reader, writer: BatchWriter) -> None:
    await writer.store(batch(log([named("a", 1), named("b", 2), named("b", -50)])))
    back = named("b", -100, last_timestamp=at(100))
    await writer.store(batch(log([back, named("a", 200)], begin=3)))

    first, second = await reader.events()

    assert (first["metadata"]["name"], second["metadata"]["name"]) == ("a", "b")
    assert second["firstTimestamp"] < first["firstTimestamp"]


async def test_recurrences_are_counted_and_the_latest_is_shown(
    reader: Reader, writer: BatchWriter
) -> None:
    first = named("a", 5, count=2, message="first")
    await writer.store(batch(log([first, named("a", 9, count=3, message="latest")])))
    await writer.store(batch(log([named("a", 7, count=4, message="late")], begin=2)))
    [event] = await reader.events()
    assert (event["count"], event["message"]) == (9, "latest")
    assert (event["firstTimestamp"], event["lastTimestamp"]) == (
        "2026-01-01T00:00:05Z",
        "2026-01-01T00:00:09Z",
    )


async def test_times_are_cut_to_the_second_and_bounds_are_shown(
    reader: Reader, writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    least = datetime(1970, 1, 1, 0, 0, 0, 999999, tzinfo=UTC)
    greatest = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    await writer.store(batch(log([occurrence(first_timestamp=least, last_timestamp=greatest)])))
    await owner.execute("UPDATE execution_events.event SET count = $1", COUNT_MAX)
    [event] = await reader.events()
    assert event["firstTimestamp"] == "1970-01-01T00:00:00Z"
    assert event["lastTimestamp"] == "9999-12-31T23:59:59Z"
    assert event["count"] == COUNT_MAX


async def test_text_is_as_it_was_published(reader: Reader, writer: BatchWriter) -> None:
    message = 'quote " backslash \\ <tag> & \t\n\x01\x7f \u2028 é 元 😀 \ufeff'
    await writer.store(batch(log([occurrence(message=message)])))
    response = await reader.get(EVENTS)
    assert response.json()[0]["message"] == message
    assert "é 元 😀" in response.content.decode()


async def test_an_execution_has_its_own_events_alone(reader: Reader, writer: BatchWriter) -> None:
    await writer.store(batch(log([named("a", execution_id="execution-10")])))
    assert (await reader.get(EVENTS)).content == b"[]"


async def test_a_long_list_is_whole(reader: Reader, writer: BatchWriter) -> None:
    names = [f"object.{number:05}" for number in range(5000)]
    await writer.store(batch(log([named(name) for name in names])))
    assert [event["metadata"]["name"] for event in await reader.events()] == names


# What is refused.


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
        ("limit=1", "'limit'"),
        ("verbose", "'verbose'"),
        ("=1", "''"),
        ("a%0d%0ab=1", r"'a\r\nb'"),
        ("%00%1b%5B31m=1", r"'\x00\x1b[31m'"),
        ("%ff=1", r"'\ufffd'"),
        ("%E5%85%83=1", r"'\u5143'"),
        ("x" * 5000 + "=1", "'" + "x" * 64 + "'"),
    ],
    ids=[
        "known later",
        "no value",
        "no name",
        "lines",
        "escapes",
        "not UTF-8",
        "not ASCII",
        "long",
    ],
)
async def test_a_parameter_is_refused_by_its_name(idle: Reader, query: str, shown: str) -> None:
    response = await idle.get(f"{EVENTS}?{query}")
    assert response.status_code == 400
    assert response.json() == {
        "error_code": "EE.0400",
        "error_msg": f"{shown}: there is no such parameter",
    }


@pytest.mark.parametrize(
    "path",
    ["/", "/v1/executions/a", f"{EVENTS}/", f"{EVENTS}%0A", "/v1/executions//events",
     "/v1/executions/a%2Fb/events", "/v1/executions/a/b/events", "/docs", "/metrics", "/livez"],
)  # fmt: skip
async def test_there_is_nothing_else(idle: Reader, path: str) -> None:
    response = await idle.get(path)
    assert response.status_code == 404
    assert response.json()["error_code"] == "EE.0404"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_events_are_only_read(idle: Reader, method: str) -> None:
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


async def test_the_server_does_not_say_what_it_runs_on(idle: Reader) -> None:
    for path in (EVENTS, "/nothing"):
        assert "server" not in (await idle.get(path)).headers


async def raw(reader: Reader, request: bytes) -> bytes:
    """What a reader answers to bytes, up to its end of the connection."""
    source, sink = await asyncio.open_connection(reader.api.base_url.host, reader.api.base_url.port)
    try:
        sink.write(request)
        async with asyncio.timeout(DEADLINE):
            return await source.read()
    except ConnectionResetError:
        return b""
    finally:
        sink.close()


async def test_a_huge_head_is_refused(idle: Reader) -> None:
    """A reader that takes any head can be filled with them."""
    head = b"GET %b HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX: %b\r\n\r\n"
    assert b" 200 OK\r\n" in await raw(idle, head % (EVENTS.encode(), b"x" * 1000))
    assert b" 200 OK\r\n" not in await raw(idle, head % (EVENTS.encode(), b"x" * 1_000_000))


# Request ids and the log.


@pytest.mark.parametrize("sent", ["a", "A-z.0_9:", "a" * 128])
async def test_a_callers_request_id_is_kept(idle: Reader, sent: str) -> None:
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


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the reader logs, as the machine that collects it sees it."""
    package = logging.getLogger("execution_events")
    before = logging.root.handlers, logging.root.level, package.level
    stream = io.StringIO()
    configure_logging("json", "debug", stream)
    yield stream
    logging.root.handlers, level, package_level = before
    logging.root.setLevel(level)
    package.setLevel(package_level)


async def test_a_failure_is_logged_with_the_request_id_and_not_told(
    reader: Reader, owner: asyncpg.Connection, logged: io.StringIO
) -> None:
    await owner.execute("ALTER TABLE execution_events.event RENAME TO moved")
    response = await reader.get(EVENTS, headers={"X-Request-Id": "request-1"})
    assert response.status_code == 500
    assert response.json() == {
        "error_code": "EE.0500",
        "error_msg": "internal error; the log has the request id",
    }
    [failure] = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert (failure["level"], failure["request_id"]) == ("error", "request-1")
    assert "42P01" in failure["traceback"]


async def test_a_caller_cannot_write_into_the_log(
    reader: Reader, owner: asyncpg.Connection, logged: io.StringIO
) -> None:
    # From here on each request that gets to the database is logged.
    await owner.execute("ALTER TABLE execution_events.event RENAME TO moved")
    await reader.get("/v1/executions/a%0Aforged/events")
    await reader.get(f"{EVENTS}?a%0Aforged=%0Aforged")
    for value in (b"forged line", b"a\x85forged", b"\xe2\x80\xa8forged", b'forged","level":"info'):
        response = await reader.get(EVENTS, headers=[(b"x-request-id", value)])
        assert response.status_code == 500
    assert [json.loads(line)["event"] for line in logged.getvalue().splitlines()] == [
        "request failed"
    ] * 4
    assert "forged" not in logged.getvalue()


# The database away, and the management port.


async def test_the_reader_waits_for_its_database(
    database: Database, writer: BatchWriter, unused_port: int
) -> None:
    """It starts without it, says so, answers once it is there, and again after it was away."""
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
                "error_msg": "the database is away; try again",
            }
            return True

        assert await away()
        for _ in range(2):
            async with forwarding(unused_port, database.reader):
                ready = await reader.management.get("/readyz")
                assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})
                assert len(await reader.events()) == 1
            await until(away, "the reader notices that the database is away")
        assert (await reader.management.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM schema_version WHERE version > 1", "run `execution-events migrate`"),
        ("INSERT INTO schema_version VALUES (9999, 'later')", "upgrade execution-events"),
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
    await reader.get(f"{EVENTS}?limit=1")
    await reader.get("/nothing")

    response = await reader.management.get("/metrics")

    assert response.headers["Content-Type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert {name for name in families if not name.endswith("_created")} == {
        "execution_events_requests",
        "execution_events_request_seconds",
    }
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


async def test_the_management_port_is_not_the_apis(idle: Reader) -> None:
    assert (await idle.management.get("/livez")).json() == {"live": True}
    assert (await idle.management.get(EVENTS)).status_code == 404


# Where it serves.


async def refused(settings: Settings) -> str:
    """Why a reader does not start; one that does stops at once."""
    stop = asyncio.Event()
    stop.set()
    with pytest.raises(SettingsError) as error:
        await run_reader(settings, stop)
    return str(error.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "no-host.invalid"])
async def test_the_reader_serves_nobody_but_this_machine(database: Database, host: str) -> None:
    settings = Settings(
        database_url=database.reader, reader_host=host, reader_port=0, management_port=0
    )
    assert (await refused(settings)).startswith("EXECUTION_EVENTS_READER_HOST: ")


async def test_a_port_that_is_taken_is_named(idle: Reader, database: Database) -> None:
    taken = idle.api.base_url.port
    settings = Settings(database_url=database.reader, reader_port=taken or 0, management_port=0)
    assert f"127.0.0.1:{taken}" in await refused(settings)
