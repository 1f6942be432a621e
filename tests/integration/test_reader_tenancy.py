"""An execution of another tenant is indistinguishable from an absent one.

Compared are the bytes of the responses and the statements and rows exchanged with PostgreSQL.
"""

import itertools
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import parse_qsl

import pytest

from execution_events.events import Occurrence
from execution_events.store.write.batches import BatchWriter
from tests.support import databases
from tests.support.dialog import Dialog, DialogMessage
from tests.support.readers import EVENTS, OPERATIONS, Reader, named, reading, resolve
from tests.support.records import Log
from tests.support.servers import Servers
from tests.support.tokens import NONE, ONE, TWO, token_file
from tests.support.wire_http import exchange, request

EVENTS_OF_TWO = 300
"""More than one fetch: the whole list is streamed."""
_number = itertools.count(100)


class Running(NamedTuple):
    """Two readers and their databases; the statements of the first are recorded."""

    reader: Reader
    dialog: Dialog
    log: Log
    elsewhere: Reader
    log_elsewhere: Log


class Tenants(NamedTuple):
    """A reader with tokens, and two executions that no request has named yet.

    `foreign` is the path of an execution of the tenant "two", `absent` that of one which does not
    exist. The reader `elsewhere` uses another database, where the absent one has the same events.
    """

    reader: Reader
    dialog: Dialog
    log: Log
    elsewhere: Reader
    foreign: str
    absent: str


def events_of_two(execution_id: str) -> list[Occurrence]:
    return [
        named(
            f"object.{number:03}",
            number,
            execution_id=execution_id,
            namespace="two",
            message="元素. ## An element.",
        )
        for number in range(EVENTS_OF_TWO)
    ]


@pytest.fixture(scope="module")
async def running(
    servers: Servers, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    tokens = tmp_path_factory.mktemp("tenancy") / "tokens.json"
    tokens.write_text(token_file())
    dialog = Dialog()
    async with (
        databases.cloned(servers.administrator_url, template_database) as database,
        databases.cloned(servers.administrator_url, template_database) as other,
        BatchWriter(database.writer, "events") as writer,
        BatchWriter(other.writer, "events") as other_writer,
        dialog.recording(database.reader) as recorded,
        reading(recorded, tokens_file=str(tokens)) as reader,
        reading(other.reader) as elsewhere,
    ):
        for each in (writer, other_writer):
            await each.begin_partition(0, 0, "cluster")
        yield Running(reader, dialog, Log(writer), elsewhere, Log(other_writer))


@pytest.fixture
async def tenants(running: Running) -> Tenants:
    """New executions for each test: a reader may reuse what it has read of one."""
    number = next(_number)
    reader, dialog, log, elsewhere, log_elsewhere = running
    await log.add(*events_of_two(f"execution-1{number}"))
    await log_elsewhere.add(*events_of_two(f"execution-9{number}"))
    # The driver reads types once for each connection.
    for headers in (ONE, {**ONE, "If-None-Match": "*"}):
        await reader.get(path_of(f"execution-7{number}"), headers=headers)
    foreign, absent = path_of(f"execution-1{number}"), path_of(f"execution-9{number}")
    return Tenants(reader, dialog, log, elsewhere, foreign, absent)


def path_of(execution_id: str) -> str:
    return EVENTS.replace("execution-1", execution_id)


class Seen(NamedTuple):
    """The effects of one request on its caller and the database, without parts that always vary."""

    head: list[bytes]
    body: bytes
    messages: list[DialogMessage]


async def ask(tenants: Tenants, target: str, *lines: str, method: str = "GET") -> Seen:
    await tenants.dialog.take()
    content = await exchange(tenants.reader.api.base_url, request(target, *lines, method=method))
    head, _, body = content.partition(b"\r\n\r\n")
    varying = (b"date:", b"x-request-id:")
    fields = [line for line in head.split(b"\r\n") if not line.lower().startswith(varying)]
    return Seen(fields, body, await tenants.dialog.take())


def status(seen: Seen) -> int:
    return int(seen.head[0].split()[1])


def executed(seen: Seen) -> list[str | bytes]:
    return [content for kind, content in seen.messages if kind == "executed"]


def of(caller: dict[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in caller.items()]


QUERIES = [
    "",
    "limit=1",
    "limit=1000",
    "limit=0",
    "order=asc",
    "order=desc",
    "order=x",
    "type=Normal",
    "type=Warning&type=Normal",
    "excludeType=Normal",
    "excludeType=Warning",
    "reason=ActionStart",
    "reason=%E5%90%AF%E5%8A%A8",
    "excludeReason=ActionStart",
    "excludeReason=x",
    "elemType=KubeDAG.init",
    "excludeElemType=KubeDAG.init",
    "elemId=job",
    "excludeElemId=job",
    "actionName=create",
    "excludeActionName=x",
    "since=2026-01-01T00:00:00Z",
    "since=2030-01-01T00:00:00Z",
    "until=2026-01-01T00:02:00Z",
    "until=x",
    "q=ELEMENT",
    "q=x",
    "lang=zh",
    "lang=en",
    "marker=x",
    "nothing=1",
    "type=Normal&excludeReason=x&q=e&since=2026-01-01T00:00:10Z&order=desc&limit=7&lang=zh",
]
HEADERS = [
    [],
    ["Accept: application/x-ndjson"],
    ["Accept-Encoding: gzip"],
    ["Accept-Encoding: zstd", "Accept: application/x-ndjson"],
    ["If-None-Match: *"],
    ['If-None-Match: W/"0123456789012345678901"'],
]


def test_every_parameter_is_among_the_queries() -> None:
    documented = {p["name"] for p in map(resolve, OPERATIONS["parameters"]) if p["in"] == "query"}
    assert {name for query in QUERIES for name, _ in parse_qsl(query)} == documented | {"nothing"}


@pytest.mark.parametrize("query", QUERIES)
async def test_a_foreign_execution_is_indistinguishable_from_an_absent_one(
    tenants: Tenants, query: str
) -> None:
    for method, headers, caller in itertools.product(("GET", "HEAD"), HEADERS, (ONE, NONE)):
        lines = [*of(caller), *headers]
        absent = await ask(tenants, f"{tenants.absent}?{query}", *lines, method=method)
        foreign = await ask(tenants, f"{tenants.foreign}?{query}", *lines, method=method)
        assert foreign == absent
        assert status(foreign) in (200, 304, 400)
        assert bool(executed(foreign)) == (status(foreign) != 400)


@pytest.mark.parametrize("query", ["", "limit=9"])
async def test_repeated_requests_are_indistinguishable(tenants: Tenants, query: str) -> None:
    """Requests of the owner before do not matter."""
    for _ in range(4):
        await ask(tenants, f"{tenants.foreign}?{query}", *of(TWO))
    for number in range(4):
        absent = await ask(tenants, f"{tenants.absent}?{query}", *of(ONE))
        foreign = await ask(tenants, f"{tenants.foreign}?{query}", *of(ONE))
        assert foreign == absent
        assert (foreign.body, len(executed(foreign))) == (b"[]", 1), number


@pytest.mark.parametrize("query", ["", "limit=1", "type=Normal&order=desc"])
async def test_the_owner_gets_another_response(tenants: Tenants, query: str) -> None:
    """The execution exists, and the comparison above would notice."""
    absent = await ask(tenants, f"{tenants.absent}?{query}", *of(ONE))
    own = await ask(tenants, f"{tenants.foreign}?{query}", *of(TWO))
    assert status(own) == 200
    assert own.body.count(b'"metadata"') == (1 if query == "limit=1" else EVENTS_OF_TWO)
    assert own.head != absent.head
    assert own.messages != absent.messages
    if query != "limit=1":
        # A stream takes more queries than a page.
        assert len(executed(own)) > len(executed(absent))


@pytest.mark.parametrize("query", ["limit=9", "limit=9&order=desc", "limit=9&type=Normal&lang=en"])
@pytest.mark.parametrize("limit", ["", "&limit=1"], ids=["the rest", "a page"])
async def test_a_marker_of_another_tenant_leads_nowhere(
    tenants: Tenants, query: str, limit: str
) -> None:
    """The absent execution has its marker from a database where it exists."""
    page = await tenants.reader.get(f"{tenants.foreign}?{query}", headers=TWO)
    of_foreign = page.headers["X-Next-Marker"]
    of_absent = (await tenants.elsewhere.get(f"{tenants.absent}?{query}")).headers["X-Next-Marker"]
    rest = query.removeprefix("limit=9") + limit
    for method, headers in itertools.product(("GET", "HEAD"), HEADERS):
        lines = [*of(ONE), *headers]
        absent = await ask(
            tenants, f"{tenants.absent}?marker={of_absent}{rest}", *lines, method=method
        )
        foreign = await ask(
            tenants, f"{tenants.foreign}?marker={of_foreign}{rest}", *lines, method=method
        )
        assert foreign == absent
        assert status(foreign) in (200, 304)
        # One that belongs to neither is refused for both.
        absent = await ask(
            tenants, f"{tenants.absent}?marker={of_foreign}{rest}", *lines, method=method
        )
        foreign = await ask(
            tenants, f"{tenants.foreign}?marker={of_absent}{rest}", *lines, method=method
        )
        assert foreign == absent
        assert (status(foreign), executed(foreign)) == (400, [])
    own = await ask(tenants, f"{tenants.foreign}?marker={of_foreign}{rest}", *of(TWO))
    assert own.body.count(b'"metadata"') == (1 if limit else EVENTS_OF_TWO - 9)


@pytest.mark.parametrize("query", ["", "limit=9", "type=Normal"])
async def test_an_entity_tag_of_another_tenant_reveals_nothing(
    tenants: Tenants, query: str
) -> None:
    tags = [
        (await tenants.reader.get(f"{path}?{query}", headers=caller)).headers["ETag"]
        # Another absent one: what was request before may be answered without the same statements.
        for path, caller in ((tenants.foreign, TWO), (tenants.absent.replace("-9", "-8"), ONE))
    ]
    for method, tag in itertools.product(("GET", "HEAD"), tags):
        lines = [*of(ONE), f"If-None-Match: {tag}"]
        absent = await ask(tenants, f"{tenants.absent}?{query}", *lines, method=method)
        foreign = await ask(tenants, f"{tenants.foreign}?{query}", *lines, method=method)
        assert foreign == absent
        assert status(foreign) == (200 if tag == tags[0] else 304)


async def test_changes_of_other_tenants_are_invisible(tenants: Tenants) -> None:
    """Also in an execution of both tenants: neither events nor the entity tag change."""
    path = tenants.foreign.replace("-1", "-2")
    execution_id = path.split("/")[3]
    mine, theirs = (
        named(name, execution_id=execution_id, namespace=name) for name in ("one", "two")
    )
    await tenants.log.add(mine)
    # Until the response comes from the cache.
    *_, before = [await ask(tenants, path, *of(ONE)) for _ in range(3)]
    assert before.body.count(b'"metadata"') == 1
    for _ in range(2):
        await tenants.log.add(theirs)
        assert await ask(tenants, path, *of(ONE)) == before


@pytest.mark.parametrize(
    ("method", "target", "lines", "expected"),
    [
        ("GET", "{}", [], 401),
        ("HEAD", "{}", ["X-Auth-Token: unkn0wn"], 401),
        ("GET", "{}", [*of(ONE), "Authorization: Bearer t0ken-of-two"], 401),
        ("GET", "{}/", of(ONE), 404),
        ("GET", "{}%0a", of(ONE), 404),
        ("POST", "{}", of(ONE), 405),
        ("DELETE", "{}", of(ONE), 405),
        ("GET", "{}", [*of(ONE), "Content-Length: 1"], 413),
        ("GET", "/openapi.json?{}", of(ONE), 200),
        ("HEAD", "/openapi.json?{}", [], 200),
    ],
)
async def test_other_requests_are_indistinguishable_and_run_no_query(
    tenants: Tenants, method: str, target: str, lines: list[str], expected: int
) -> None:
    absent = await ask(tenants, target.format(tenants.absent), *lines, method=method)
    foreign = await ask(tenants, target.format(tenants.foreign), *lines, method=method)
    assert foreign == absent
    assert (status(foreign), foreign.messages) == (expected, [])
