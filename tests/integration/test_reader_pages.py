"""Lists and keyset pages: order, bytes and markers."""

import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execution_events.events import COUNT_MAX
from execution_events.projection.body import decode
from execution_events.store.read import events as listing
from execution_events.store.read.events import EventReader
from execution_events.store.read.selection import Position, Selection
from execution_events.store.write.batches import BatchWriter
from tests.support import golden
from tests.support.databases import Database
from tests.support.filling import write
from tests.support.readers import EVENTS, Reader, at, named, reading, reading_only
from tests.support.records import batch, log, occurrence
from tests.support.servers import Servers

SEED = "/v1/executions/e19d3faf-9f04-9685-e5c0-fbe8d40b96cd/events"


# Content of a list.


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


async def test_events_are_ordered_by_creation_name_and_namespace_in_bytes(
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


async def test_recurrences_keep_their_position(reader: Reader, writer: BatchWriter) -> None:
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
    reader: Reader, owner: asyncpg.Connection
) -> None:
    least = datetime(1970, 1, 1, 0, 0, 0, 999999, tzinfo=UTC)
    greatest = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    bounds = occurrence(first_timestamp=least, last_timestamp=greatest, count=COUNT_MAX)
    await write(owner, [bounds])
    [event] = await reader.events()
    assert event["firstTimestamp"] == "1970-01-01T00:00:00Z"
    assert event["lastTimestamp"] == "9999-12-31T23:59:59Z"
    assert event["count"] == COUNT_MAX


async def test_texts_are_returned_as_published(reader: Reader, writer: BatchWriter) -> None:
    message = 'quote " backslash \\ <tag> & \t\n\x01\x7f \u2028 é 元 😀 \ufeff'
    await writer.store(batch(log([occurrence(message=message)])))
    response = await reader.get(EVENTS)
    assert response.json()[0]["message"] == message
    assert "é 元 😀" in response.content.decode()


async def test_a_list_has_only_the_events_of_its_execution(
    reader: Reader, writer: BatchWriter
) -> None:
    await writer.store(batch(log([named("a", execution_id="execution-10")])))
    assert (await reader.get(EVENTS)).content == b"[]"


async def test_a_long_list_is_complete(reader: Reader, writer: BatchWriter) -> None:
    names = [f"object.{number:05}" for number in range(5000)]
    await writer.store(batch(log([named(name) for name in names])))
    assert [event["metadata"]["name"] for event in await reader.events()] == names


# Pages.


async def follow(reader: Reader, response: httpx.Response) -> httpx.Response | None:
    """Follow the link to the next page, if there is one."""
    link = response.links.get("next")
    assert (link is None) == ("X-Next-Marker" not in response.headers)
    if link is None:
        return None
    url = response.request.url.join(link["url"])
    assert url.params["marker"] == response.headers["X-Next-Marker"]
    return await reader.get(str(url))


def names_of(response: httpx.Response) -> list[str]:
    return [event["metadata"]["name"] for event in response.json()]


@pytest.fixture(scope="module")
async def nine(servers: Servers, template_database: str) -> AsyncIterator[Reader]:
    """A reader of nine events; some tie in list position, or in list position and name."""
    greatest = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    extreme = named("z", first_timestamp=greatest, last_timestamp=greatest)
    ties = [
        named(name, 1, namespace=space) for name in ("a", "元", "😀") for space in ("n", "租户")
    ]
    later = named("m", 1.000001), named("k", 1.000002)
    async with reading_only(servers, template_database, *ties, *later, extreme) as reader:
        yield reader


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 8, 9, 10, 1000])
async def test_pages_add_up_to_the_list(nine: Reader, order: str, limit: int) -> None:
    """No page of a list with events is empty."""
    whole = await nine.events(params={"order": order})
    assert len(whole) == 9
    page: httpx.Response | None = await nine.get(EVENTS, params={"limit": limit, "order": order})
    walked = []
    while page is not None:
        assert 1 <= len(page.json()) <= limit
        walked += page.json()
        page = await follow(nine, page)
    assert walked == whole


@pytest.mark.tampers
async def test_a_marker_outlives_its_event_and_the_reader(
    database: Database, reader: Reader, writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    await writer.store(batch(log([named(name, second) for second, name in enumerate("abc")])))
    first = await reader.get(EVENTS, params={"limit": 2})
    await owner.execute("DELETE FROM execution_events.event WHERE name = 'b'")
    async with reading(database.reader) as another:
        marker = first.headers["X-Next-Marker"]
        assert await another.names(limit=2, marker=marker) == ["c"]


async def test_a_marker_is_bound_to_its_query(reader: Reader, writer: BatchWriter) -> None:
    await writer.store(batch(log([named("a"), named("b")])))
    first = await reader.get(EVENTS, params={"limit": 1})
    marker = first.headers["X-Next-Marker"]
    for path, params in (
        (EVENTS.replace("execution-1", "execution-2"), {}),
        (EVENTS, {"order": "desc"}),
        (EVENTS, {"type": "Normal"}),
        (EVENTS, {"lang": "en"}),
    ):
        response = await reader.get(path, params={"limit": 1, "marker": marker, **params})
        assert response.status_code == 400
        assert response.json()["error_msg"].startswith("marker: ")


Arrival = tuple[int, int]
"""An event's number, and the second of its record."""
_arrivals = st.lists(st.tuples(st.integers(0, 11), st.integers(-5, 5)), max_size=4)


class _Logs:
    """State shared by the examples, which share a database."""

    offset = 0
    example = 0


@given(
    before=st.sets(st.integers(0, 11)),
    between=st.lists(_arrivals, max_size=8),
    limit=st.integers(1, 4),
    order=st.sampled_from(["asc", "desc"]),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_pages_stay_exact_while_events_arrive(
    reader: Reader,
    writer: BatchWriter,
    before: set[int],
    between: list[list[Arrival]],
    limit: int,
    order: str,
) -> None:
    """Events from before the first page are on exactly one page; none is on two.

    Meanwhile events recur, earlier and later than they began, and new ones arrive anywhere.
    """
    _Logs.example += 1
    execution_id = f"execution-{_Logs.example}"

    async def arrive(arrivals: Sequence[Arrival]) -> None:
        if arrivals:
            events = [
                named(f"object.{number}", second, execution_id=execution_id)
                for number, second in arrivals
            ]
            await writer.store(batch(log(events, begin=_Logs.offset)))
            _Logs.offset += len(events)

    await arrive([(number, number % 3) for number in sorted(before)])
    path = f"/v1/executions/{execution_id}/events"
    page: httpx.Response | None = await reader.get(path, params={"limit": limit, "order": order})
    walked: list[str] = []
    steps = iter(between)
    while page is not None:
        walked += names_of(page)
        assert len(walked) == len(set(walked))
        await arrive(next(steps, []))
        page = await follow(reader, page)
    assert {f"object.{number}" for number in before} <= set(walked)


# Cost of a page.


async def test_a_page_reads_no_more_than_its_events(
    database: Database, owner: asyncpg.Connection
) -> None:
    """Counted in blocks, anywhere in a long list, with and without statistics."""
    await write(
        owner,
        (
            occurrence(name=f"object.{number}", first_timestamp=at(number // 3 - 86400))
            for number in range(30000)
        ),
    )
    async with EventReader.open(database.reader, size=1) as lists:
        for statement in ("SELECT 1", "VACUUM ANALYZE execution_events.event"):
            await owner.execute(statement)
            for descending in (False, True):
                selection = Selection(descending=descending)
                async with lists.stream("execution-1", selection, None) as stream:
                    bodies = [body async for batch in stream.batches for body in batch]
                for begin in (0, 101, 27001):
                    after = position(bodies[begin - 1]) if begin else None
                    deep = Selection(descending=descending, after=after)
                    for namespaces in (None, frozenset({"tenant"}), frozenset({"x", "tenant"})):
                        plan = await explained(lists, deep, namespaces)
                        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 200
                        page = await lists.page("execution-1", deep, namespaces, 100)
                        assert page.bodies == bodies[begin : begin + 100]
                foreign = await explained(lists, selection, frozenset({"other"}))
                absent = await explained(lists, selection, frozenset({"other"}), "absent")
                assert foreign["Shared Hit Blocks"] <= absent["Shared Hit Blocks"] + 2


def position(body: bytes) -> Position:
    event = decode(body)
    moment = datetime.fromisoformat(event.first_timestamp)
    return Position(moment, event.metadata.name, event.metadata.namespace)


async def explained(
    lists: EventReader,
    selection: Selection,
    namespaces: frozenset[str] | None,
    execution_id: str = "execution-1",
) -> dict[str, Any]:
    """Return the plan of a page of 100, made on a connection of the reader."""
    statement = listing._ListQuery(execution_id, namespaces)
    statement.select(selection)
    text, arguments = statement.page(100)
    async with lists._pool.acquire() as connection:
        await connection.fetch(text, *arguments)
        [[[explanation]]] = [
            [json.loads(row[0])]
            for row in await connection.fetch(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", *arguments
            )
        ]
    plan: dict[str, Any] = explanation["Plan"]
    return plan
