"""The list of executions: content, order, pages, filters, formats, conditions and refusals."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from execution_events.events import COUNT_MAX, TIMESTAMP_MAX, TIMESTAMP_MIN
from execution_events.reader.parameters import LIMIT_MAX
from tests.support import golden
from tests.support.consumers import until
from tests.support.databases import Database
from tests.support.readers import EXECUTIONS, OPENAPI, Reader, at, decoded, named, reading
from tests.support.records import Log
from tests.support.seed import SEED_EXECUTION
from tests.support.tokens import NONE, ONE, TENANTS, TWO, token_file
from tests.support.wire_http import exchange, parse_responses, request

CREATED = datetime(2026, 1, 1, tzinfo=UTC)
EXAMPLES = OPENAPI["paths"][EXECUTIONS]["get"]["responses"]["200"]["content"]["application/json"][
    "examples"
]
LINES = {"Accept": "application/x-ndjson"}
OPERATOR = {"X-Auth-Token": "t0ken-of-an-operator"}


async def create_at(owner: asyncpg.Connection, moments: Mapping[str, datetime]) -> None:
    """Set the creation of executions, which is otherwise the time of their transaction."""
    await owner.executemany(
        "UPDATE execution SET created_at = $2 WHERE execution_id = $1", list(moments.items())
    )


async def lock_awaited(owner: asyncpg.Connection) -> bool:
    found = await owner.fetchval(
        "SELECT count(*) FROM pg_locks WHERE NOT granted"
        " AND relation = 'execution_events.execution'::regclass"
    )
    return bool(found)


def ids(executions: list[dict[str, Any]]) -> list[str]:
    return [execution["executionId"] for execution in executions]


async def walked(
    reader: Reader, params: Mapping[str, object], **options: Any
) -> list[list[dict[str, Any]]]:
    """Return the pages of a list, following the links."""
    pages = []
    url: str | None = str(httpx.URL(EXECUTIONS, params=dict(params)))
    while url is not None:
        response = await reader.get(url, **options)
        assert response.status_code == 200, response.text
        pages.append(response.json())
        link = response.links.get("next")
        assert (link is None) == ("X-Next-Marker" not in response.headers)
        url = None if link is None else str(response.request.url.join(link["url"]))
    return pages


# Content.

FAILED = (
    '{"executionId":"0b8f5a4e-6c1d-4f0e-9a57-3d1c5e2f7a90",'
    '"namespace":"c51567523b744d098a8a81ede51894ac","objectName":"gcs-exec-3-08-20-150102",'
    '"state":"failed",'
    '"elements":{"total":2,"running":0,"succeeded":1,"failed":1,"timedOut":0,"cancelled":0},'
    '"warnings":3,"events":5,"occurrences":6,"firstTimestamp":"2018-08-20T07:01:02Z",'
    '"lastTimestamp":"2018-08-20T07:03:30Z","createdAt":"2018-08-20T07:01:03Z",'
    '"firstFailure":{"elemId":"job-b-init","actionName":"create","reason":"执行失败##ActionFailed",'
    '"message":"元素(job-b-init)执行create失败: exit code 137 (OOMKilled) ## Element(job-b-init)'
    ' execute Action: create failed: exit code 137 (OOMKilled)"}}'
)
RUNNING = (
    '{"executionId":"e19d3faf-9f04-9685-e5c0-fbe8d40b96cd",'
    '"namespace":"c51567523b744d098a8a81ede51894ac","objectName":"gcs-exec-3-08-20-144951",'
    '"state":"running",'
    '"elements":{"total":3,"running":2,"succeeded":1,"failed":0,"timedOut":0,"cancelled":0},'
    '"warnings":0,"events":3,"occurrences":3,"firstTimestamp":"2018-08-20T06:41:44Z",'
    '"lastTimestamp":"2018-08-20T06:41:44Z","createdAt":"2018-08-20T06:41:45Z",'
    '"firstFailure":null}'
)


@pytest.fixture
async def example(written: Log, owner: asyncpg.Connection) -> None:
    """The executions of the document's example: the seed, and one that failed."""
    seed = [case.occurrence for case in golden.load("seed.json") if case.occurrence is not None]
    begin = datetime(2018, 8, 20, 7, 1, 2, tzinfo=UTC)
    namespace, execution_id = seed[0].namespace, "0b8f5a4e-6c1d-4f0e-9a57-3d1c5e2f7a90"

    def event(element: str, reason: str, seconds: int, **fields: Any) -> Any:
        moment = begin + timedelta(seconds=seconds)
        return named(
            f"gcs-exec-3-08-20-150102.{element}{seconds}",
            **{
                "execution_id": execution_id,
                "namespace": namespace,
                "object_name": "gcs-exec-3-08-20-150102",
                "object_namespace": namespace,
                "reason": reason,
                "elem_id": element,
                "first_timestamp": moment,
                "last_timestamp": moment,
                **fields,
            },
        )

    await written.add(*seed)
    await written.add(
        event("job-a-init", "启动##ActionStart", 0),
        event("job-b-init", "启动##ActionStart", 1),
        event("job-a-init", "执行成功##SuccessfulFinish", 2),
        event("job-b-init", "重试##ActionRetry", 60, count=2, type="Warning"),
        event(
            "job-b-init",
            "执行失败##ActionFailed",
            148,
            type="Warning",
            message="元素(job-b-init)执行create失败: exit code 137 (OOMKilled) ##"
            " Element(job-b-init) execute Action: create failed: exit code 137 (OOMKilled)",
        ),
    )
    await create_at(
        owner,
        {
            SEED_EXECUTION: datetime(2018, 8, 20, 6, 41, 45, tzinfo=UTC),
            execution_id: datetime(2018, 8, 20, 7, 1, 3, 999999, tzinfo=UTC),
        },
    )


async def test_an_answer_byte_for_byte(reader: Reader, example: None) -> None:
    response = await reader.get(EXECUTIONS)
    assert response.headers["Content-Type"] == "application/json"
    assert response.content.decode() == f"[{FAILED},{RUNNING}]"
    lines = await reader.get(EXECUTIONS, headers=LINES)
    assert lines.content.decode() == f"{FAILED}\n{RUNNING}\n"


async def test_the_examples_of_the_document_are_answers(reader: Reader, example: None) -> None:
    for name, params in (("two", {}), ("english", {"lang": "en", "state": "failed"})):
        executions = await reader.executions(params)
        assert json.dumps(executions) == json.dumps(EXAMPLES[name]["value"])


async def test_times_have_the_chosen_precision(reader: Reader, example: None) -> None:
    first, second = await reader.executions({"times": "micro"})
    assert (first["createdAt"], second["createdAt"]) == (
        "2018-08-20T07:01:03.999999Z",
        "2018-08-20T06:41:45.000000Z",
    )
    assert first["firstTimestamp"] == "2018-08-20T07:01:02.000000Z"
    assert second["lastTimestamp"] == "2018-08-20T06:41:44.000000Z"
    explicit = await reader.executions({"times": "second"})
    assert explicit == await reader.executions()


async def test_the_bounds_of_every_member_are_shown(reader: Reader, written: Log) -> None:
    names: dict[str, Any] = {"namespace": "元" * 84 + "a", "object_name": "😀" * 63}
    await written.add(
        named(
            "a",
            execution_id="x" * 128,
            first_timestamp=TIMESTAMP_MIN,
            last_timestamp=TIMESTAMP_MAX,
            reason="ActionFailed",
            message='quote " backslash \\ \n\x01 é 元 😀' + "m" * 16000,
            type="Warning",
            count=2**31 - 1,
            elem_id="元" * 256,
            action_name="😀" * 256,
            **names,
        )
    )
    [execution] = await reader.executions({"times": "micro"})
    assert execution["executionId"] == "x" * 128
    assert (execution["namespace"], execution["objectName"]) == tuple(names.values())
    assert execution["firstTimestamp"] == "1970-01-01T00:00:00.000000Z"
    assert execution["lastTimestamp"] == "9999-12-31T23:59:59.999999Z"
    assert execution["warnings"] == execution["occurrences"] == 2**31 - 1 < COUNT_MAX
    failure = execution["firstFailure"]
    assert (failure["elemId"], failure["actionName"]) == ("元" * 256, "😀" * 256)
    assert failure["message"].startswith('quote " backslash \\ \n\x01 é 元 😀m')
    [same] = await reader.executions({"objectName": names["object_name"]})
    assert same["namespace"] == names["namespace"]


FAILURE: dict[str, Any] = {"reason": "执行失败##ActionFailed", "type": "Warning"}


async def test_the_first_failure_is_the_earliest_then_the_least(
    reader: Reader, written: Log
) -> None:
    async def first() -> tuple[str, str, str]:
        [execution] = await reader.executions()
        failure = execution["firstFailure"]
        return failure["elemId"], failure["actionName"], failure["message"]

    await written.add(named("1", 5, elem_id="b", message="一 ## b at 5", **FAILURE))
    assert await first() == ("b", "create", "一 ## b at 5")
    await written.add(named("2", 5, elem_id="a", action_name="z", message="a at 5", **FAILURE))
    await written.add(named("3", 5, elem_id="a", action_name="y", message="y at 5", **FAILURE))
    await written.add(named("4", 5, elem_id="0", object_name="p", message="p", **FAILURE))
    assert await first() == ("a", "y", "y at 5")
    await written.add(named("5", 4, elem_id="z", reason="超时##ActionTimeout", message="z at 4"))
    assert await first() == ("z", "create", "z at 4")
    # It runs again: its failure is another event's now.
    await written.add(named("6", 9, elem_id="z", reason="启动##ActionStart"))
    assert await first() == ("a", "y", "y at 5")
    # The deciding event recurs with another message.
    await written.add(named("3", 6, elem_id="a", action_name="y", message="y at 6", **FAILURE))
    assert await first() == ("a", "z", "a at 5")


async def test_an_execution_that_did_not_fail_has_no_first_failure(
    reader: Reader, written: Log
) -> None:
    await written.add(
        named("1", 1, action_name="create", **FAILURE), named("2", 2, action_name="d")
    )
    [execution] = await reader.executions()
    # An action failed, and another one of its element runs.
    assert (execution["state"], execution["firstFailure"]) == ("running", None)


async def test_lang_is_that_of_the_first_failure(reader: Reader, written: Log) -> None:
    await written.add(named("1", message="坏 ## it broke", **FAILURE))
    shown = [
        (await reader.executions(params))[0]["firstFailure"]
        for params in ({}, {"lang": "zh"}, {"lang": "en"})
    ]
    assert [each["reason"] for each in shown] == [FAILURE["reason"], "执行失败", "ActionFailed"]
    assert [each["message"] for each in shown] == ["坏 ## it broke", "坏", "it broke"]


# Order and pages.


@pytest.fixture
async def nine(written: Log, owner: asyncpg.Connection) -> list[str]:
    """Executions in the order of creation; some tie in it, or in it and the id."""
    ordered = ["z", "A", "B", "a", "b:1", "c", "0"]
    await written.add(*(named("e", execution_id=each) for each in ordered[::-1]))
    await written.add(*(named("e", execution_id="c", namespace=each) for each in ("n", "租户")))
    await create_at(owner, dict.fromkeys(ordered, CREATED))
    await create_at(owner, {"z": CREATED - timedelta(microseconds=1)})
    await create_at(owner, {"0": CREATED + timedelta(microseconds=1)})
    return ["z", "A", "B", "a", "b:1", "c", "c", "c", "0"]


async def test_the_newest_come_first_then_by_id_and_namespace_in_bytes(
    reader: Reader, nine: list[str]
) -> None:
    ascending = await reader.executions({"order": "asc"})
    assert ids(ascending) == nine
    assert [each["namespace"] for each in ascending if each["executionId"] == "c"] == [
        *("n", "tenant", "租户")
    ]
    assert await reader.executions() == ascending[::-1]
    assert await reader.executions({"order": "desc"}) == ascending[::-1]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"namespace": ["n", "tenant", "租户"]},
        {"state": ["running", "failed"]},
        {"objectName": ["object", "other"], "namespace": ["租户", "tenant", "n"]},
        {"executionId": ["z", "A", "B", "a", "b:1", "c", "0"]},
    ],
    ids=str,
)
async def test_pages_add_up_to_the_list(
    reader: Reader, nine: list[str], params: dict[str, object]
) -> None:
    for order, expected in (("asc", nine), ("desc", nine[::-1])):
        for limit in (1, 2, 3, 8, 9, 10, 1000):
            pages = await walked(reader, {**params, "limit": limit, "order": order})
            assert [each for page in pages for each in ids(page)] == expected
            assert all(len(page) == limit for page in pages[:-1])
            assert 1 <= len(pages[-1]) <= limit


async def test_a_page_has_100_executions_by_default(reader: Reader, written: Log) -> None:
    await written.add(*(named("e", execution_id=f"e-{number:03}") for number in range(101)))
    first, second = await walked(reader, {})
    assert (len(first), len(second)) == (100, 1)
    assert len(await reader.executions({"limit": LIMIT_MAX})) == 101


async def test_the_link_repeats_every_other_parameter(reader: Reader, nine: list[str]) -> None:
    params = {"limit": "1", "state": ["running", "failed"], "times": "micro", "lang": "en"}
    response = await reader.get(EXECUTIONS, params=params)
    url = response.request.url.join(response.links["next"]["url"])
    assert url.params.get_list("state") == ["running", "failed"]
    assert dict(url.params) | {"state": ""} == {
        **params, "state": "", "marker": response.headers["X-Next-Marker"]
    }  # fmt: skip


@pytest.mark.tampers
async def test_a_marker_outlives_its_execution_and_the_reader(
    database: Database, reader: Reader, nine: list[str], owner: asyncpg.Connection
) -> None:
    first = await reader.get(EXECUTIONS, params={"limit": 2, "order": "asc"})
    for table in ("event", "action", "execution"):
        await owner.execute(f"DELETE FROM {table} WHERE execution_id = 'A'")
    async with reading(database.reader) as another:
        params = {"limit": 2, "order": "asc", "marker": first.headers["X-Next-Marker"]}
        assert ids(await another.executions(params)) == ["B", "a"]


async def test_a_marker_is_bound_to_its_query(reader: Reader, nine: list[str]) -> None:
    marker = (await reader.get(EXECUTIONS, params={"limit": 1})).headers["X-Next-Marker"]
    for params in (
        {"order": "asc"},
        {"state": "running"},
        {"namespace": "n"},
        {"objectName": "object"},
        {"executionId": "c"},
        {"since": "2020-01-01T00:00:00Z"},
        {"lang": "en"},
    ):
        response = await reader.get(EXECUTIONS, params={"marker": marker, **params})
        assert (response.status_code, response.json()["error_msg"]) == (
            400,
            "marker: expected a marker returned for these filters, order and lang",
        )
    for params in ({"limit": "3"}, {"times": "micro"}):
        assert (
            await reader.get(EXECUTIONS, params={"marker": marker, **params})
        ).status_code == 200


async def test_a_marker_of_events_is_refused(reader: Reader, written: Log) -> None:
    await written.add(named("a"), named("b"))
    page = await reader.get("/v1/executions/execution-1/events", params={"limit": 1})
    params = {"marker": page.headers["X-Next-Marker"]}
    assert (await reader.get(EXECUTIONS, params=params)).status_code == 400


# Filters.

REASONS = {
    "running": "ActionStart",
    "succeeded": "SuccessfulFinish",
    "failed": "ActionFailed",
    "timed_out": "ActionTimeout",
    "cancelled": "ActionCancelled",
    "unknown": "PullImage",
}


async def test_each_state_is_selected(reader: Reader, written: Log) -> None:
    await written.add(
        *(named("e", execution_id=state, reason=reason) for state, reason in REASONS.items())
    )
    for state in REASONS:
        [execution] = await reader.executions({"state": state})
        assert (execution["executionId"], execution["state"]) == (state, state)
        members = {"timed_out": "timedOut"}
        counts = {"total": 1} | {members.get(state, state): 1}
        assert {k: v for k, v in execution["elements"].items() if v} == {
            name: count for name, count in counts.items() if name != "unknown"
        }
    several = await reader.executions({"state": ["failed", "timed_out", "failed"]})
    assert {each["state"] for each in several} == {"failed", "timed_out"}
    assert len(await reader.executions({"state": list(REASONS)})) == len(REASONS)


async def test_since_includes_and_until_excludes_the_creation(
    reader: Reader, nine: list[str]
) -> None:
    for since, until_, expected in (
        ("2026-01-01T00:00:00Z", None, nine[1:]),
        ("2026-01-01T00:00:00.000001Z", None, ["0"]),
        ("2026-01-01T00:00:00.000002Z", None, []),
        (None, "2026-01-01T00:00:00Z", ["z"]),
        (None, "2026-01-01T00:00:00.000001Z", nine[:-1]),
        ("2026-01-01T08:00:00+08:00", "2026-01-01T08:00:00.000001+0800", nine[1:-1]),
        ("2026-01-02T00:00:00Z", "2025-01-01T00:00:00Z", []),
        ("1970-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", nine),
    ):
        times = {"since": since, "until": until_}
        params = {name: value for name, value in times.items() if value is not None}
        for more in (
            {},
            {"namespace": ["n", "tenant", "租户"]},
            {"executionId": sorted(set(nine))},
        ):
            for order in ("asc", "desc"):
                found = ids(await reader.executions({**params, **more, "order": order}))
                assert found == (expected if order == "asc" else expected[::-1])


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("nothing=1", 'unknown parameter "nothing"'),
        ("execution_id=a", 'unknown parameter "execution_id"; did you mean executionId?'),
        ("type=Normal", 'unknown parameter "type"'),
        ("q=a", 'unknown parameter "q"'),
        ("lastEventId=a", 'unknown parameter "lastEventId"'),
        ("limit=0", "limit: expected a whole number from 1 to 1000"),
        ("limit=1001", "limit: expected a whole number from 1 to 1000"),
        ("limit=1&limit=1", "limit: expected at most once"),
        ("order=newest", "order: expected asc or desc"),
        ("state=Failed", "state: expected running, succeeded, failed, timed_out, cancelled or"),
        ("state=timedOut", "state: expected running, succeeded, failed, timed_out, cancelled or"),
        ("state=", "state: expected 1 to 256 characters without NUL"),
        ("executionId=a/b", "executionId: expected 1 to 128 characters of A-Z a-z 0-9 . _ : -"),
        ("executionId=..", "executionId: expected 1 to 128 characters of A-Z a-z 0-9 . _ : -"),
        ("namespace=", "namespace: expected 1 to 256 characters without NUL"),
        ("namespace=%00", "namespace: expected 1 to 256 characters without NUL"),
        ("objectName=" + "a" * 257, "objectName: expected 1 to 256 characters without NUL"),
        ("&".join(f"state=failed{n}" for n in range(33)), "state: expected at most 32 values"),
        ("since=yesterday", "since: expected "),
        ("until=2026-01-01", "until: expected "),
        ("lang=fr", "lang: expected zh or en"),
        ("times=milli", "times: expected second or micro"),
        ("marker=x", "marker: expected a marker returned for these filters, order and lang"),
        ("objectName=%ff", 'parameter "objectName": expected UTF-8'),
    ],
)
async def test_a_wrong_parameter_is_named(idle: Reader, query: str, message: str) -> None:
    response = await idle.get(f"{EXECUTIONS}?{query}")
    assert response.status_code == 400
    assert response.json()["error_code"] == "EE.0400"
    assert response.json()["error_msg"].startswith(message)
    assert response.headers["X-Request-Id"]


# Formats and conditions.


async def test_lines_have_the_same_limit_and_link(reader: Reader, nine: list[str]) -> None:
    array = await reader.get(EXECUTIONS, params={"limit": 4})
    lines = await reader.get(EXECUTIONS, params={"limit": 4}, headers=LINES)
    assert [json.loads(line) for line in lines.content.splitlines()] == array.json()
    assert lines.headers["Link"] == array.headers["Link"]
    assert lines.headers["X-Next-Marker"] == array.headers["X-Next-Marker"]
    assert (await reader.get(EXECUTIONS, params={"state": "failed"}, headers=LINES)).content == b""


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("text/event-stream", 406),
        ("text/event-stream, text/html", 406),
        ("text/html", 406),
        ("text/event-stream, */*;q=0.1", 200),
        ("text/event-stream, application/x-ndjson;q=0.1", 200),
        ("*/*", 200),
    ],
)
async def test_the_list_is_not_watched(idle: Reader, accept: str, status: int) -> None:
    response = await idle.get(EXECUTIONS, headers={"Accept": accept})
    assert response.status_code == status
    if status == 406:
        assert response.json() == {
            "error_code": "EE.0406",
            "error_msg": "Accept: expected application/json, application/x-ndjson or */*",
        }


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_long_bodies_are_encoded(reader: Reader, written: Log, encoding: str) -> None:
    await written.add(*(named("e", execution_id=f"e-{number}") for number in range(20)))
    plain = await reader.get(EXECUTIONS, headers={"Accept-Encoding": "identity"})
    encoded = await reader.get(EXECUTIONS, headers={"Accept-Encoding": encoding})
    assert encoded.headers["Content-Encoding"] == encoding
    assert decoded(encoded) == plain.content
    short = await reader.get(EXECUTIONS, params={"limit": 1}, headers={"Accept-Encoding": encoding})
    assert "Content-Encoding" not in short.headers


async def test_head_has_the_headers_of_get(reader: Reader, nine: list[str]) -> None:
    for params in ({"limit": 2}, {"executionId": "c", "limit": 1}, {"limit": 0}):
        get, head = [await reader.request(m, EXECUTIONS, params=params) for m in ("GET", "HEAD")]
        assert head.content == b""
        varying = ("date", "x-request-id")
        shown = [
            {name: value for name, value in each.headers.items() if name not in varying}
            for each in (get, head)
        ]
        assert (head.status_code, shown[1]) == (get.status_code, shown[0])


async def test_only_executions_by_id_have_an_entity_tag(reader: Reader, nine: list[str]) -> None:
    for params in ({}, {"namespace": "n"}, {"objectName": "object"}):
        response = await reader.get(EXECUTIONS, params=params, headers={"If-None-Match": "*"})
        assert response.status_code == 200
        assert "ETag" not in response.headers
    variants: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"executionId": "c"}, {}),
        ({"executionId": ["c", "z"]}, {}),
        ({"executionId": "absent"}, {}),
        ({"executionId": "c", "limit": 1}, {}),
        ({"executionId": "c", "state": "failed"}, {}),
        ({"executionId": "c", "lang": "en"}, {}),
        ({"executionId": "c", "times": "micro"}, {}),
        ({"executionId": "c"}, LINES),
    ]
    tags = set()
    for method in ("GET", "HEAD"):
        for params, headers in variants:
            tag = (await reader.request(method, EXECUTIONS, params=params, headers=headers)).headers
            tags.add(tag["ETag"])
            for condition in (tag["ETag"], tag["ETag"].removeprefix("W/"), "*"):
                again = await reader.request(
                    method,
                    EXECUTIONS,
                    params=params,
                    headers={**headers, "If-None-Match": condition},
                )
                assert (again.status_code, again.content) == (304, b"")
                assert again.headers["ETag"] == tag["ETag"]
    assert len(tags) == len(variants)


async def test_the_tag_changes_with_each_of_the_executions(reader: Reader, written: Log) -> None:
    """Also with one that the other filters or the limit leave out: it may follow the page now."""
    params = {"executionId": ["a", "b", "c"], "state": "failed", "limit": 1}
    await written.add(named("1", execution_id="a", **FAILURE))
    seen = [await reader.get(EXECUTIONS, params=params)]
    for more in (
        named("1", execution_id="b"),
        named("2", 9, execution_id="b", **FAILURE),
        named("1", execution_id="a", **FAILURE),
        named("1", execution_id="b", namespace="other"),
    ):
        await written.add(more)
        tag = {"If-None-Match": seen[-1].headers["ETag"]}
        seen.append(await reader.get(EXECUTIONS, params=params, headers=tag))
        assert seen[-1].status_code == 200
    assert ["Link" in each.headers for each in seen] == [False, False, True, True, True]
    await written.add(named("1", execution_id="d"))
    tag = {"If-None-Match": seen[-1].headers["ETag"]}
    assert (await reader.get(EXECUTIONS, params=params, headers=tag)).status_code == 304


# Access.


@pytest.fixture
async def guarded(
    database: Database, written: Log, owner: asyncpg.Connection, tmp_path: Path
) -> AsyncIterator[Reader]:
    """A reader with tokens, and executions of two tenants, one of them of both."""
    tokens = tmp_path / "tokens.json"
    operator = {OPERATOR["X-Auth-Token"]: ["*"], "both": ["one", "two"], "mixed": ["*", "one"]}
    tokens.write_text(token_file({**TENANTS, **operator}))
    for second, (execution_id, namespace) in enumerate(
        (("a", "one"), ("b", "two"), ("shared", "one"), ("shared", "two"), ("d", "one"))
    ):
        await written.add(
            named("e", execution_id=execution_id, namespace=namespace, object_name=namespace)
        )
        await owner.execute(
            "UPDATE execution SET created_at = $3 WHERE (execution_id, namespace) = ($1, $2)",
            *(execution_id, namespace, at(second)),
        )
    async with reading(database.reader, tokens_file=str(tokens)) as reader:
        yield reader


PARAMS: list[dict[str, Any]] = [
    {},
    {"state": "running"},
    {"objectName": ["one", "two"]},
    {"objectName": ["one", "two"], "state": ["running", "failed"]},
    {"executionId": ["a", "b", "shared", "d"]},
    {"namespace": ["one", "two"]},
    {"since": "2026-01-01T00:00:00Z", "order": "desc"},
]


@pytest.mark.parametrize("params", PARAMS, ids=str)
async def test_a_caller_reads_their_namespaces(guarded: Reader, params: dict[str, Any]) -> None:
    for headers, expected in (
        (ONE, ["d", "shared", "a"]),
        (TWO, ["shared", "b"]),
        (NONE, []),
        ({"X-Auth-Token": "both"}, ["d", "shared", "shared", "b", "a"]),
        (OPERATOR, ["d", "shared", "shared", "b", "a"]),
        # Beside another namespace, `*` is one like any other.
        ({"X-Auth-Token": "mixed"}, ["d", "shared", "a"]),
    ):
        assert ids(await guarded.executions(params, headers=headers)) == expected
        pages = await walked(guarded, {**params, "limit": 1}, headers=headers)
        assert [each for page in pages for each in ids(page)] == expected
        # The marker of another caller leads to nothing more.
        page = await guarded.get(EXECUTIONS, params={**params, "limit": 1}, headers=OPERATOR)
        marker = page.headers["X-Next-Marker"]
        found = ids(await guarded.executions({**params, "marker": marker}, headers=headers))
        assert found == [each for each in expected if each != "d"]


async def test_an_operator_reads_the_events_of_all_namespaces(guarded: Reader) -> None:
    events = await guarded.get("/v1/executions/shared/events", headers=OPERATOR)
    assert [event["metadata"]["namespace"] for event in events.json()] == ["one", "two"]
    mixed = await guarded.get("/v1/executions/shared/events", headers={"X-Auth-Token": "mixed"})
    assert [event["metadata"]["namespace"] for event in mixed.json()] == ["one"]


@pytest.mark.parametrize("params", PARAMS, ids=str)
async def test_foreign_executions_are_indistinguishable_from_absent_ones(
    guarded: Reader, written: Log, params: dict[str, Any]
) -> None:
    """By filters and entity tags, before and after they change."""
    for name, foreign, absent in (
        ("executionId", "b", "absent"),
        ("namespace", "two", "absent"),
        ("objectName", "two", "absent"),
    ):
        if name == "namespace" or params.get(name):
            continue
        responses = [
            await guarded.get(EXECUTIONS, params={**params, name: value}, headers=ONE)
            for value in (foreign, absent)
        ]
        assert [each.content for each in responses] == [b"[]", b"[]"]
    by_id = {**params, "executionId": ["b", "shared"]}
    before = await guarded.get(EXECUTIONS, params=by_id, headers=ONE)
    for execution_id in ("b", "shared"):
        await written.add(named("f", 9, execution_id=execution_id, namespace="two"))
    after = await guarded.get(EXECUTIONS, params=by_id, headers=ONE)
    assert (after.headers["ETag"], after.content) == (before.headers["ETag"], before.content)
    await written.add(named("f", 9, execution_id="shared", namespace="one"))
    changed = await guarded.get(EXECUTIONS, params=by_id, headers=ONE)
    assert changed.headers["ETag"] != before.headers["ETag"]


@pytest.mark.parametrize("headers", [{}, {"X-Auth-Token": "unkn0wn"}], ids=str)
async def test_a_token_is_required(guarded: Reader, headers: dict[str, str]) -> None:
    for method in ("GET", "HEAD"):
        response = await guarded.request(method, EXECUTIONS, headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer realm=")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_the_list_is_only_read(idle: Reader, method: str) -> None:
    response = await idle.request(method, EXECUTIONS)
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD"}


async def test_lists_take_slots_of_their_caller(
    database: Database, owner: asyncpg.Connection
) -> None:
    async with reading(database.reader, reader_max_requests_per_token=1) as reader:
        async with owner.transaction():
            await owner.execute("LOCK TABLE execution")
            waiting = asyncio.create_task(reader.get(EXECUTIONS))
            await until(lambda: lock_awaited(owner), "the first request waits for the lock")
            refused = await reader.get(EXECUTIONS)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert (await waiting).status_code == 200


async def test_a_client_that_has_ended_its_input_is_answered(
    reader: Reader, written: Log, owner: asyncpg.Connection
) -> None:
    """As `nc -N` sends a request; the end of its input alone does not end a statement."""
    await written.add(named("e"))
    async with owner.transaction():
        await owner.execute("LOCK TABLE execution")
        answering = asyncio.create_task(
            exchange(reader.api.base_url, request(EXECUTIONS), half_closed=True)
        )
        await until(lambda: lock_awaited(owner), "the request waits for the lock")
        # Its response tells that the reader has seen the end of the input.
        await reader.api.get("/")
    [answer] = parse_responses(await answering)
    assert (answer.status, len(json.loads(answer.body))) == (200, 1)
