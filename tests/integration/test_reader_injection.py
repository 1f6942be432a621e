"""Injection: no input of a caller becomes SQL, a forged position or a line of the log."""

import base64
import io
import json
import re
from collections.abc import Callable
from urllib.parse import quote

import asyncpg
import httpx
import pytest

from tests.support.logs import logging_to
from tests.support.readers import (
    EVENTS,
    EXECUTIONS,
    EXECUTIONS_OPERATIONS,
    OPERATIONS,
    Reader,
    resolve,
)
from tests.support.wire_http import exchange, parse_responses, request

QUERY = [
    (path, parameter["name"])
    for path, operations in ((EVENTS, OPERATIONS), (EXECUTIONS, EXECUTIONS_OPERATIONS))
    for parameter in map(resolve, operations["parameters"])
    if parameter["in"] == "query"
]

# SQL.

SQL = [
    "' OR '1'='1",
    "a' OR 1=1 --",
    "'; DROP SCHEMA execution_events CASCADE; --",
    "'); SELECT pg_sleep(60); --",
    "' UNION SELECT rolpassword FROM pg_authid --",
    "' || current_user || '",
    "\\'; SELECT 1; --",
    "$1",
    "$$ || 1 || $$",
    "{column}",
    "%s%(a)s",
    "/*",
    "\ufeff' OR ''='",
    "＇ OR 1=1 --",
]


def unvarying(response: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    """A response without the headers that vary."""
    varying = {"etag", "date", "x-request-id"}
    fields = {name: value for name, value in response.headers.items() if name not in varying}
    return response.status_code, fields, response.content


@pytest.mark.parametrize(("path", "name"), QUERY)
async def test_sql_in_a_parameter_is_only_a_value(still: Reader, path: str, name: str) -> None:
    before = await still.events()
    harmless = unvarying(await still.get(path, params={name: "no such"}))
    for value in SQL:
        assert unvarying(await still.get(path, params={name: value})) == harmless
    assert await still.events() == before


async def test_sql_in_a_parameter_name_is_refused(still: Reader) -> None:
    for name in SQL:
        response = await still.get(EVENTS, params={name: "a"})
        assert response.status_code == 400
        assert response.json()["error_msg"].startswith("unknown parameter ")


async def test_sql_in_the_path_is_only_a_value(still: Reader) -> None:
    harmless = unvarying(await still.get("/v1/executions/~/events"))
    assert harmless[0] == 400
    for value in SQL:
        # A slash separates parts of the path.
        escaped = quote(value.replace("/", ""), safe="")
        assert unvarying(await still.get(f"/v1/executions/{escaped}/events")) == harmless


# Markers.

FIRST = {"limit": "1", "order": "desc", "type": "Normal"}
"""The first page; its marker leads to the second."""


def flipped(marker: str, bit: int) -> str:
    content = bytearray(unpacked(marker))
    content[bit // 8] ^= 1 << bit % 8
    return packed(content)


def packed(content: bytes | bytearray) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def unpacked(marker: str) -> bytes:
    return base64.urlsafe_b64decode(marker + "=" * (-len(marker) % 4))


@pytest.fixture
async def marker(still: Reader) -> str:
    page = await still.get(EVENTS, params=FIRST)
    given: str = page.headers["X-Next-Marker"]
    following = await still.events(params=FIRST | {"marker": given})
    assert [event["metadata"]["name"] for event in following] == ["b"]
    return given


DAMAGED: dict[str, Callable[[str], str]] = {
    "nothing": lambda _: "",
    "one character less": lambda marker: marker[:-1],
    "half": lambda marker: marker[: len(marker) // 2],
    "its version alone": lambda marker: marker[:2],
    "its first character twice": lambda marker: marker[0] + marker,
    "one character more": lambda marker: marker + "A",
    "twice": lambda marker: marker * 2,
    "padded": lambda marker: marker + "=" * (-len(marker) % 4 or 4),
    "a line break behind it": lambda marker: marker + "\n",
    "a space before it": lambda marker: " " + marker,
    "NUL behind it": lambda marker: marker + "\0",
    "the other case": str.swapcase,
    "version 0": lambda marker: packed(b"\0" + unpacked(marker)[1:]),
    "version 2": lambda marker: packed(b"\2" + unpacked(marker)[1:]),
    "another digest": lambda marker: packed(b"\1" + bytes(12) + unpacked(marker)[13:]),
    "another end": lambda marker: packed(unpacked(marker)[:-1] + b"x"),
    "a byte behind it": lambda marker: packed(unpacked(marker) + b"\0"),
    "JSON": lambda _: packed(b'{"place":0,"name":"","namespace":""}'),
    "SQL": lambda _: packed(b"' OR '1'='1"),
    "pickled": lambda _: packed(b"cposix\nsystem\n(S'true'\ntR."),
    "an offset": lambda _: "1",
    "the largest": lambda marker: (marker * 100)[:1024],
    "too large": lambda marker: (marker * 100)[:1025],
    "huge": lambda marker: (marker * 1000)[:8000],
    "not ASCII": lambda _: "Ａｃ",
    "another alphabet": lambda _: "ab+/cd",
}


@pytest.mark.parametrize("damage", DAMAGED)
async def test_a_damaged_marker_is_refused(still: Reader, marker: str, damage: str) -> None:
    await refused(still, FIRST | {"marker": DAMAGED[damage](marker)})


async def test_a_marker_with_any_bit_flipped_is_refused(still: Reader, marker: str) -> None:
    for bit in range(8 * len(unpacked(marker))):
        await refused(still, FIRST | {"marker": flipped(marker, bit)})


@pytest.mark.parametrize(
    "change",
    [
        {"order": "asc"},
        {"type": "Warning"},
        {"excludeType": "Warning"},
        {"q": "a"},
        {"lang": "en"},
        {"since": "2020-01-01T00:00:00Z"},
        {"until": "2030-01-01T00:00:00Z"},
    ],
    ids=str,
)
async def test_a_marker_of_another_query_is_refused(
    still: Reader, marker: str, change: dict[str, str]
) -> None:
    await refused(still, FIRST | {"marker": marker} | change)


async def test_a_marker_of_another_execution_is_refused(still: Reader, marker: str) -> None:
    await refused(still, FIRST | {"marker": marker}, EVENTS.replace("execution-1", "execution-2"))


async def refused(reader: Reader, params: dict[str, str], path: str = EVENTS) -> None:
    response = await reader.get(path, params=params)
    assert response.status_code == 400
    assert response.json()["error_msg"].startswith("marker: expected a marker returned for this")


# The log.

FORGED = [
    request("/v1/executions/a%0d%0aforged/events"),
    request("/v1/executions/a%1b[31mforged/events"),
    request("/forged%0aforged"),
    request(f"{EVENTS}?a%0aforged=a"),
    request(f"{EVENTS}?q=a%0d%0aforged"),
    request(f"{EVENTS}?type=a%1b]0;forged%07"),
    request(f"{EVENTS}?reason=%e2%80%a8forged"),
    request(EVENTS, "X-Request-Id: forged line"),
    request(EVENTS, "X-Request-Id: a", " forged"),
    request(EVENTS, "X-Request-Id: a\r", "forged: a"),
    request(EVENTS, "X-Request-Id: a\x1b[31mforged"),
    request(EVENTS, "X-Request-Id: a\x85forged"),
    request(EVENTS, "X-Request-Id: a\xe2\x80\xa8forged"),
    request(EVENTS, 'X-Request-Id: forged","event":"forged'),
    request(EVENTS, "X-Request-Id: a%0aforged"),
    request(EVENTS, f"X-Request-Id: {'forged' * 22}"),
    request(EVENTS, "User-Agent: a\x1b[31mforged", "Referer: forged", "X-Forwarded-For: forged"),
    request(EVENTS, method="FORGED"),
]


@pytest.mark.tampers
@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_a_caller_cannot_write_into_the_log(
    reader: Reader, owner: asyncpg.Connection, log_format: str
) -> None:
    # From here on, each request that reaches the database is logged.
    await owner.execute("ALTER TABLE execution_events.event RENAME COLUMN body TO other")
    with logging_to(log_format) as stream:
        statuses = []
        for sent in [*FORGED, request(EVENTS, "X-Request-Id: safe-1.a:b_c")]:
            [answer] = parse_responses(await exchange(reader.api.base_url, sent))
            statuses.append(answer.status)
            assert answer.fields["x-request-id"] == "safe-1.a:b_c" or re.fullmatch(
                "[0-9a-f]{32}", answer.fields["x-request-id"]
            )
        check_log(stream, log_format, statuses.count(500))
    assert set(statuses) == {400, 404, 405, 500}


def check_log(stream: io.StringIO, log_format: str, failures: int) -> None:
    """Check that each failed request has one entry with its id and none of its input."""
    content = stream.getvalue()
    assert "forged" not in content.lower()
    # The probe reports that PostgreSQL is unavailable, without any caller's input.
    lines = [line for line in content.splitlines() if "peer_unavailable" not in line]
    assert all(line.isprintable() for line in lines)
    if log_format == "text":
        # Lines that begin no entry are indented lines of a traceback.
        lines = [line for line in lines if not line.startswith("  ")]
        assert all(re.match(r"[0-9:]{8} ERROR   request_failed  request_id=", x) for x in lines)
        assert lines[-1].endswith(" request_id=safe-1.a:b_c")
    else:
        entries = [json.loads(line) for line in lines]
        assert {entry["event"] for entry in entries} == {"request_failed"}
        assert entries[-1]["request_id"] == "safe-1.a:b_c"
    assert len(lines) == failures
