"""Entity tags, formats and encodings of responses."""

import json
from collections.abc import AsyncIterator

import asyncpg
import pytest

from execution_events.projection.body import decode
from execution_events.store.read.events import EventReader, Page
from execution_events.store.read.selection import Selection
from execution_events.store.write.batches import BatchWriter
from tests.support.databases import Database
from tests.support.readers import EVENTS, Reader, decoded, named, reading_only
from tests.support.records import batch, log, occurrence
from tests.support.servers import Servers


async def test_an_unchanged_list_is_304(reader: Reader, writer: BatchWriter) -> None:
    await writer.store(batch(log([named("a", count=2)])))
    for method in ("GET", "HEAD"):
        tag = (await reader.request(method, EVENTS)).headers["ETag"]
        again = await reader.request(method, EVENTS, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == tag

    await writer.store(batch(log([named("a", count=3)], begin=1)))
    changed = await reader.get(EVENTS, headers={"If-None-Match": tag})

    assert changed.status_code == 200
    assert changed.json()[0]["count"] == 5
    assert changed.headers["ETag"] != tag


async def test_the_tag_of_an_empty_list_changes_with_the_execution(
    reader: Reader, writer: BatchWriter
) -> None:
    """The filter matches nothing before and after."""
    tags = []
    for begin in range(3):
        response = await reader.get(EVENTS, params={"type": "nothing"})
        assert response.json() == []
        tags.append(response.headers["ETag"])
        await writer.store(batch(log([occurrence()], begin=begin)))
    assert len(set(tags)) == 3


@pytest.mark.tampers
async def test_a_304_reads_no_events(
    reader: Reader, writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    await writer.store(batch(log([occurrence()])))
    tag = (await reader.get(EVENTS)).headers["ETag"]
    await owner.execute("ALTER TABLE execution_events.event RENAME TO moved")
    assert (await reader.get(EVENTS, headers={"If-None-Match": tag})).status_code == 304


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ("{}", 304),
        ("*", 304),
        ('"other", {}', 304),
        ('W/"other",{},"more"', 304),
        ('"with, comma", {}', 304),
        ('"other"', 200),
        ('"*"', 200),
        ("", 200),
        (",", 200),
        ('W/"', 200),
        ("x" * 8000, 200),
        ('"' * 8000, 200),
    ],
    ids=lambda condition: str(condition)[:20],
)
async def test_if_none_match_compares_weakly(idle: Reader, condition: str, status: int) -> None:
    tag = (await idle.get(EVENTS)).headers["ETag"]
    for form in (tag, tag.removeprefix("W/")):
        headers = {"If-None-Match": condition.replace("{}", form)}
        assert (await idle.get(EVENTS, headers=headers)).status_code == status


async def test_a_condition_may_be_several_headers(idle: Reader) -> None:
    tag = (await idle.get(EVENTS)).headers["ETag"]
    headers = [("If-None-Match", '"other"'), ("If-None-Match", tag)]
    assert (await idle.get(EVENTS, headers=headers)).status_code == 304


async def test_tags_differ_by_query_and_format(idle: Reader) -> None:
    variants: list[tuple[dict[str, str], dict[str, str]]] = [
        ({}, {}),
        ({"limit": "1"}, {}),
        ({"lang": "en"}, {}),
        ({"type": "a"}, {}),
        ({"order": "desc"}, {}),
        ({}, {"Accept": "application/x-ndjson"}),
    ]
    tags = [(await idle.get(EVENTS, params=p, headers=h)).headers["ETag"] for p, h in variants]
    assert len(set(tags)) == len(variants)
    encoded = await idle.get(EVENTS, headers={"Accept-Encoding": "zstd"})
    assert encoded.headers["ETag"] == tags[0]


async def test_an_execution_of_another_tenant_looks_absent(
    database: Database, writer: BatchWriter
) -> None:
    foreign = named("b", execution_id="foreign", namespace="other")
    await writer.store(batch(log([named("a"), foreign])))
    tenant = frozenset({"tenant"})
    async with EventReader.open(database.reader) as lists:
        for selection in (Selection(), Selection(text="a", descending=True)):
            for execution_id in ("foreign", "absent"):
                assert await lists.page(execution_id, selection, tenant, 10) == Page("", [], None)
                assert await lists.revisions(execution_id, tenant) == ""
                async with lists.stream(execution_id, selection, tenant) as stream:
                    assert stream.revisions == ""
                    assert [events async for events in stream.batches] == []
        # An execution in two namespaces: each caller sees its own, with its revisions.
        shared = named("b", namespace="other")
        await writer.store(batch(log([shared], begin=2)))
        before = await lists.page("execution-1", Selection(), tenant, 10)
        assert [decode(body).metadata.name for body in before.bodies] == ["a"]
        await writer.store(batch(log([shared], begin=3)))
        assert await lists.page("execution-1", Selection(), tenant, 10) == before
        everything = await lists.page("execution-1", Selection(), None, 10)
        assert [decode(body).metadata.name for body in everything.bodies] == ["a", "b"]
        assert everything.revisions != before.revisions
        assert (await lists.page("execution-1", Selection(), frozenset(), 10)).bodies == []


async def test_a_page_and_its_revisions_are_of_one_snapshot(
    database: Database, writer: BatchWriter
) -> None:
    """The count is the number of the transaction that made the revision."""
    seen: dict[str, int] = {}
    async with EventReader.open(database.reader) as lists:
        for number in range(20):
            await writer.store(batch(log([named("a")], begin=2 * number)))
            page = await lists.page("execution-1", Selection(), None, 10)
            async with lists.stream("execution-1", Selection(), None) as stream:
                await writer.store(batch(log([named("b", execution_id="x")], begin=2 * number + 1)))
                [bodies] = [bodies async for bodies in stream.batches]
            assert (stream.revisions, bodies) == (page.revisions, page.bodies)
            seen[page.revisions] = decode(page.bodies[0]).count
    assert list(seen.values()) == list(range(1, 21))


# Formats.

TWO, TWENTY = (EVENTS.replace("execution-1", each) for each in ("two", "twenty"))


@pytest.fixture(scope="module")
async def filled(servers: Servers, template_database: str) -> AsyncIterator[Reader]:
    events = [
        named("a", execution_id="two", message="line\nbreak\u2028"),
        named("b", 1, execution_id="two"),
        *(named(f"a.{number}", execution_id="twenty") for number in range(20)),
    ]
    async with reading_only(servers, template_database, *events) as reader:
        yield reader


@pytest.mark.parametrize(
    ("accept", "lines"),
    [
        ("application/x-ndjson", True),
        ("Application/X-NDJSON", True),
        ("application/x-ndjson, */*", True),
        ("application/x-ndjson, application/json;q=0.5", True),
        ("application/x-ndjson;q=0.5, text/html", True),
        ("application/json, application/x-ndjson", False),
        ("application/x-ndjson;q=0, */*", False),
        ("application/x-ndjson;q=0.5, application/json", False),
        ("application/x-ndjson;q=0.5, */*;q=0.8", False),
        ("application/x-ndjson;q=2", False),
        ("application/x-ndjson;q=nan", False),
        ("*/*", False),
        ("", False),
        ("text/html, */*;q=0.1", False),
        (";,;q=,=;;", False),
    ],
)
async def test_accept_chooses_the_format(filled: Reader, accept: str, lines: bool) -> None:
    array = await filled.events(TWO)
    response = await filled.get(TWO, headers={"Accept": accept})
    assert response.headers["Content-Type"] == (
        "application/x-ndjson" if lines else "application/json"
    )
    if lines:
        shown = [json.loads(line) for line in response.content.split(b"\n")[:-1]]
        assert response.content.endswith(b"\n")
    else:
        shown = response.json()
    assert shown == array


async def test_an_empty_list_has_no_lines(idle: Reader) -> None:
    response = await idle.get(EVENTS, headers={"Accept": "application/x-ndjson"})
    assert (response.status_code, response.content) == (200, b"")


# Encodings.


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, zstd", "zstd"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0.5, gzip", "gzip"),
        ("zstd;q=0, gzip", "gzip"),
        ("*", "zstd"),
        ("*;q=0", None),
        ("zstd;q=0, *", "gzip"),
        ("GZIP", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0.5, identity", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("br, deflate", None),
        ("identity;q=0", None),
        ("gzip;q=x", None),
    ],
)
async def test_accept_encoding_chooses_the_encoding(
    filled: Reader, accept: str, encoding: str | None
) -> None:
    plain = await filled.get(TWENTY, headers={"Accept-Encoding": "identity"})
    response = await filled.get(TWENTY, headers={"Accept-Encoding": accept})
    assert response.headers.get("Content-Encoding") == encoding
    assert decoded(response) == plain.content
    if encoding:
        assert int(response.headers["Content-Length"]) < len(plain.content) / 4


async def test_short_bodies_are_not_encoded(idle: Reader) -> None:
    response = await idle.get(EVENTS, headers={"Accept-Encoding": "gzip, zstd"})
    assert "Content-Encoding" not in response.headers
    assert response.headers["Vary"] == "Accept, Accept-Encoding, Authorization, X-Auth-Token"
