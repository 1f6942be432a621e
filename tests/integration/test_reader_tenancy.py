"""An execution of another tenant is as if it were not there: to the last byte of the answer, and
in what PostgreSQL is asked and says."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

import pytest

from execution_events.store.write.batches import BatchWriter
from tests.support import databases
from tests.support.backends import Servers
from tests.support.databases import Database
from tests.support.dialog import Dialog, Said
from tests.support.readers import EVENTS, OPERATIONS, Reader, named, reading, resolve
from tests.support.records import batch, log
from tests.support.tokens import NONE, ONE, TWO, token_file
from tests.support.wire_http import asked, exchange

ABSENT = EVENTS.replace("execution-1", "execution-9")
EVENTS_OF_TWO = 300
"""More than are fetched at once: the whole list is streamed."""


class Tenants(NamedTuple):
    """A reader with tokens, an execution of the tenant two, and what its database hears.

    `elsewhere` reads another database, where the absent execution has the same events.
    """

    reader: Reader
    dialog: Dialog
    writer: BatchWriter
    elsewhere: Reader


async def fill(writer: BatchWriter, execution_id: str) -> None:
    await writer.begin_partition(0, 0, "cluster")
    events = [
        named(
            f"object.{number:03}",
            number,
            execution_id=execution_id,
            namespace="two",
            message="元素. ## An element.",
        )
        for number in range(EVENTS_OF_TWO)
    ]
    await writer.store(batch(log(events)))


@pytest.fixture(scope="module")
async def filled(
    servers: Servers, template_database: str
) -> AsyncIterator[tuple[Database, BatchWriter, Database]]:
    async with (
        databases.cloned(servers.administrator_url, template_database) as database,
        databases.cloned(servers.administrator_url, template_database) as other,
        BatchWriter(database.writer, "events") as writer,
        BatchWriter(other.writer, "events") as other_writer,
    ):
        await fill(writer, "execution-1")
        await fill(other_writer, "execution-9")
        yield database, writer, other


@pytest.fixture
async def tenants(
    filled: tuple[Database, BatchWriter, Database], tmp_path: Path
) -> AsyncIterator[Tenants]:
    """Readers that were asked nothing yet: what a caller asked before may be known to a reader."""
    tokens = tmp_path / "tokens.json"
    tokens.write_text(token_file())
    database, writer, other = filled
    dialog = Dialog()
    async with (
        dialog.recording(database.reader) as recorded,
        reading(recorded, tokens_file=str(tokens)) as reader,
        reading(other.reader) as elsewhere,
    ):
        # The driver asks about types, once for each connection.
        warming = ABSENT.replace("9", "7")
        for headers in (ONE, {**ONE, "If-None-Match": "*"}):
            await reader.get(warming, headers=headers)
        yield Tenants(reader, dialog, writer, elsewhere)


class Seen(NamedTuple):
    """What a caller and the database see of one request, but what is another one for each."""

    head: list[bytes]
    body: bytes
    said: list[Said]


async def ask(tenants: Tenants, target: str, *lines: str, method: str = "GET") -> Seen:
    await tenants.dialog.take()
    content = await exchange(tenants.reader.api.base_url, asked(target, *lines, method=method))
    head, _, body = content.partition(b"\r\n\r\n")
    varying = (b"date:", b"x-request-id:")
    fields = [line for line in head.split(b"\r\n") if not line.lower().startswith(varying)]
    return Seen(fields, body, await tenants.dialog.take())


def status(seen: Seen) -> int:
    return int(seen.head[0].split()[1])


def executed(seen: Seen) -> list[str | bytes]:
    return [content for kind, content in seen.said if kind == "executed"]


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
async def test_foreign_and_absent_are_alike(tenants: Tenants, query: str) -> None:
    for method, headers, caller in itertools.product(("GET", "HEAD"), HEADERS, (ONE, NONE)):
        lines = [*of(caller), *headers]
        absent = await ask(tenants, f"{ABSENT}?{query}", *lines, method=method)
        foreign = await ask(tenants, f"{EVENTS}?{query}", *lines, method=method)
        assert foreign == absent
        assert status(foreign) in (200, 304, 400)
        assert bool(executed(foreign)) == (status(foreign) != 400)


@pytest.mark.parametrize("query", ["", "limit=9"])
async def test_answers_that_are_given_again_are_alike(tenants: Tenants, query: str) -> None:
    """Whatever others have asked before, and were answered."""
    for _ in range(4):
        await ask(tenants, f"{EVENTS}?{query}", *of(TWO))
    for number in range(4):
        absent = await ask(tenants, f"{ABSENT}?{query}", *of(ONE))
        foreign = await ask(tenants, f"{EVENTS}?{query}", *of(ONE))
        assert foreign == absent
        assert (foreign.body, len(executed(foreign))) == (b"[]", 1), number


@pytest.mark.parametrize("query", ["", "limit=1", "type=Normal&order=desc"])
async def test_the_owner_is_answered_otherwise(tenants: Tenants, query: str) -> None:
    """The execution is there, and what is compared above can tell."""
    absent = await ask(tenants, f"{ABSENT}?{query}", *of(ONE))
    own = await ask(tenants, f"{EVENTS}?{query}", *of(TWO))
    assert status(own) == 200
    assert own.body.count(b'"metadata"') == (1 if query == "limit=1" else EVENTS_OF_TWO)
    assert own.head != absent.head
    assert own.said != absent.said
    if query != "limit=1":
        # A stream is more questions than a page.
        assert len(executed(own)) > len(executed(absent))


@pytest.mark.parametrize("query", ["limit=9", "limit=9&order=desc", "limit=9&type=Normal&lang=en"])
@pytest.mark.parametrize("limit", ["", "&limit=1"], ids=["the rest", "a page"])
async def test_a_marker_of_another_tenant_leads_nowhere(
    tenants: Tenants, query: str, limit: str
) -> None:
    """The absent execution has its marker from a database where it is there."""
    page = await tenants.reader.get(f"{EVENTS}?{query}", headers=TWO)
    of_foreign = page.headers["X-Next-Marker"]
    of_absent = (await tenants.elsewhere.get(f"{ABSENT}?{query}")).headers["X-Next-Marker"]
    rest = query.removeprefix("limit=9") + limit
    for method, headers in itertools.product(("GET", "HEAD"), HEADERS):
        lines = [*of(ONE), *headers]
        absent = await ask(tenants, f"{ABSENT}?marker={of_absent}{rest}", *lines, method=method)
        foreign = await ask(tenants, f"{EVENTS}?marker={of_foreign}{rest}", *lines, method=method)
        assert foreign == absent
        assert status(foreign) in (200, 304)
        # One that belongs to neither is refused for both.
        absent = await ask(tenants, f"{ABSENT}?marker={of_foreign}{rest}", *lines, method=method)
        foreign = await ask(tenants, f"{EVENTS}?marker={of_absent}{rest}", *lines, method=method)
        assert foreign == absent
        assert (status(foreign), executed(foreign)) == (400, [])
    own = await ask(tenants, f"{EVENTS}?marker={of_foreign}{rest}", *of(TWO))
    assert own.body.count(b'"metadata"') == (1 if limit else EVENTS_OF_TWO - 9)


@pytest.mark.parametrize("query", ["", "limit=9", "type=Normal"])
async def test_an_entity_tag_of_another_tenant_tells_nothing(tenants: Tenants, query: str) -> None:
    tags = [
        (await tenants.reader.get(f"{path}?{query}", headers=caller)).headers["ETag"]
        # Another absent one: what was asked before may be answered without the same statements.
        for path, caller in ((EVENTS, TWO), (ABSENT.replace("9", "8"), ONE))
    ]
    for method, tag in itertools.product(("GET", "HEAD"), tags):
        lines = [*of(ONE), f"If-None-Match: {tag}"]
        absent = await ask(tenants, f"{ABSENT}?{query}", *lines, method=method)
        foreign = await ask(tenants, f"{EVENTS}?{query}", *lines, method=method)
        assert foreign == absent
        assert status(foreign) == (200 if tag == tags[0] else 304)


async def test_what_is_changed_by_others_is_not_seen(tenants: Tenants) -> None:
    """Not in an execution of both tenants either: neither an event nor the tag."""
    path = EVENTS.replace("execution-1", "execution-2")
    shared = [named(name, execution_id="execution-2", namespace=name) for name in ("one", "two")]
    begin = EVENTS_OF_TWO
    await tenants.writer.store(batch(log(shared[:1], begin=begin)))
    # Until it is answered from what was answered before.
    *_, before = [await ask(tenants, path, *of(ONE)) for _ in range(3)]
    assert before.body.count(b'"metadata"') == 1
    for number in (1, 2):
        await tenants.writer.store(batch(log(shared[1:], begin=begin + number)))
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
async def test_what_is_no_list_is_alike_and_asks_nothing(
    tenants: Tenants, method: str, target: str, lines: list[str], expected: int
) -> None:
    absent = await ask(tenants, target.format(ABSENT), *lines, method=method)
    foreign = await ask(tenants, target.format(EVENTS), *lines, method=method)
    assert foreign == absent
    assert (status(foreign), foreign.said) == (expected, [])
