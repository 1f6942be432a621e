"""Requests of hostile and broken clients, and the response to each.

Afterwards the same reader serves a good client, and its log is empty.
"""

import asyncio
import io
import json
from collections.abc import Iterator

import pytest

from tests.support.logs import logging_to
from tests.support.readers import EVENTS, EXECUTIONS, Reader
from tests.support.wire_http import check_error, exchange, parse_responses, request

ABSENT = "/v1/executions/execution-9/events"
FAILED = f"{EXECUTIONS}?state=failed"
SMUGGLED = request("/smuggled")
MB = 1_000_000


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    with logging_to("json") as stream:
        yield stream


async def good(still: Reader) -> bytes:
    """Check the response to a good client and return its body."""
    [answer] = parse_responses(await exchange(still.api.base_url, request(EVENTS)))
    assert answer.status == 200
    assert [event["metadata"]["name"] for event in json.loads(answer.body)] == ["a", "b", "c"]
    return answer.body


def path(execution_id: str) -> str:
    return f"/v1/executions/{execution_id}/events"


def with_body(*lines: str, body: bytes = b"", method: str = "GET") -> bytes:
    """A request with a body that hides another request, on a connection that stays open."""
    return request(ABSENT, *lines, method=method, close=False) + body + SMUGGLED


ID = "execution_id: expected 1 to 128 characters"
MALFORMED = "malformed HTTP request"
TARGET = "malformed request target: expected percent-encoded UTF-8"
HOST = "wrong host: without tokens"
NOTHING = "not found; executions are at"
MEANT = f"not found; did you mean {EVENTS}?"
METHOD = "method not allowed: expected GET or HEAD"
BODY = "request body not allowed"
ONCE = "limit: expected at most once"
UTF_8 = 'parameter "q": expected UTF-8'
CODING = "unsupported transfer coding"
VERSION = "expected HTTP/1.1"
LATE = "request head not received in time"
HEADERS = "bytes and 100 headers"
NONE = "[]"
ALL = "[…]"
ROOT = (
    f'{{"executions":"/v1/executions","events":"{path("{execution_id}")}",'
    '"contract":"/openapi.json","reference":"/docs"}'
)
"""The whole list."""

# Name, request, status, and a part of the error's message or of the body.
HOSTILE: list[tuple[str, bytes, int, str]] = [
    # The path.
    ("NUL in the path", request(path("a%00b")), 400, ID),
    ("raw NUL in the path", request(path("a\0b")), 400, MALFORMED),
    ("an id of 129 characters", request(path("a" * 129)), 400, ID),
    ("an id of 8,000 characters", request(path("a" * 8000)), 400, ID),
    ("a wrong escape", request(path("%zz")), 400, ID),
    ("a cut escape", request(path("a%")), 400, ID),
    ("an escape twice", request(path("%2500")), 400, ID),
    ("invalid UTF-8", request(path("%ff")), 400, ID),
    ("overlong UTF-8", request(path("%c0%af")), 400, ID),
    ("a surrogate", request(path("%ed%a0%80")), 400, ID),
    ("raw bytes", request(path("\xff")), 400, TARGET),
    ("a space", request(path("a b")), 400, MALFORMED),
    ("a semicolon", request(path("a;limit=1")), 400, ID),
    ("a question mark in the id", request(path("a%3flimit=0")), 400, ID),
    ("a line break in the id", request(path("a%0a")), 400, ID),
    ("a line break at the end", request(f"{EVENTS}%0a"), 404, NOTHING),
    ("an empty id", request(path("")), 404, NOTHING),
    ("a slash at the end", request(f"{EVENTS}/"), 404, MEANT),
    ("two slashes at the beginning", request(f"/{EVENTS}"), 404, NOTHING),
    ("two slashes within", request(EVENTS.replace("/v1/", "/v1//")), 404, NOTHING),
    ("an encoded slash", request(path("a%2fb")), 404, NOTHING),
    ("a dot", request(path(".")), 400, ID),
    ("two dots", request(path("..")), 400, ID),
    ("two encoded dots", request(path("%2e%2e")), 400, ID),
    ("three dots", request(path("...")), 200, NONE),
    ("traversal", request("/v1/executions/../../etc/passwd"), 404, NOTHING),
    ("encoded traversal", request(path("..%2f..%2fetc%2fpasswd")), 404, NOTHING),
    ("up and down again", request(f"/v1/..{EVENTS}"), 404, NOTHING),
    ("backslashes", request(EVENTS.replace("/", "\\")), 404, NOTHING),
    ("a fragment", request(f"{EVENTS}#a"), 404, NOTHING),
    ("the absolute form", request(f"http://127.0.0.1:8080{EVENTS}"), 200, ALL),
    ("the absolute form of TLS", request(f"HTTPS://LocalHost{EVENTS}?limit=0"), 400, "limit: "),
    ("the absolute form without a path", request("http://localhost?limit=0"), 200, ROOT),
    ("another's absolute form", request(f"http://evil.invalid{EVENTS}"), 421, HOST),
    ("an absolute form with a user", request(f"http://localhost@evil.invalid{EVENTS}"), 421, HOST),
    ("the absolute form of another scheme", request(f"ftp://localhost{EVENTS}"), 404, NOTHING),
    ("an asterisk", request("*"), 404, NOTHING),
    ("OPTIONS *", request("*", method="OPTIONS"), 404, NOTHING),
    ("an authority", request("evil.invalid:443", method="CONNECT"), 404, NOTHING),
    # Parameters.
    ("NUL in a parameter", request(f"{ABSENT}?type=a%00b"), 400, "type: expected"),
    ("NUL in a name", request(f"{ABSENT}?ty%00pe=a"), 400, r'unknown parameter "ty\u0000pe"'),
    ("an overlong parameter", request(f"{ABSENT}?q={'a' * 257}"), 400, "q: expected 1 to 256"),
    ("an overlong query", request(f"{ABSENT}?q={'a' * 8191}"), 400, "at most 8192 bytes"),
    ("a parameter twice", request(f"{ABSENT}?limit=1&limit=1"), 400, ONCE),
    ("and in disguise", request(f"{ABSENT}?limit=1&%6cimit=1"), 400, ONCE),
    ("33 values", request(f"{ABSENT}?{'type=a&' * 33}"), 400, "type: expected at most 32"),
    ("invalid UTF-8 as a value", request(f"{ABSENT}?q=%e5"), 400, UTF_8),
    ("overlong UTF-8 as a value", request(f"{ABSENT}?q=%c0%80"), 400, UTF_8),
    ("UTF-16 as a value", request(f"{ABSENT}?q=%ff%fea%00"), 400, UTF_8),
    ("raw UTF-8 as a value", request(f"{ABSENT}?q=\xe5\x85\x83"), 400, TARGET),
    ("wrong escapes as a value", request(f"{EVENTS}?q=%zz%"), 200, NONE),
    ("another digit", request(f"{ABSENT}?limit=%d9%a1"), 400, "limit: expected"),
    ("no end of digits", request(f"{ABSENT}?limit={'9' * 5000}"), 400, "limit: expected"),
    ("a tenant", request(f"{ABSENT}?namespace=other"), 400, 'unknown parameter "namespace"'),
    ("an array", request(f"{ABSENT}?type[]=a"), 400, 'unknown parameter "type[]"'),
    ("nothing but ampersands", request(f"{EVENTS}?{'&' * 8000}"), 200, ALL),
    # Headers.
    ("a long target", request(f"{ABSENT}?q={'a' * 12288}"), 414, "at most 12288 bytes"),
    ("a target of 1 MB", request(f"/{'a' * MB}"), 431, HEADERS),
    ("a header of 1 MB", request(ABSENT, f"X: {'a' * MB}"), 431, HEADERS),
    ("a name of 1 MB", request(ABSENT, f"{'X' * MB}: a"), 431, HEADERS),
    ("20,000 headers", request(ABSENT, *(f"X-{n}: a" for n in range(20_000))), 431, HEADERS),
    ("101 headers", request(ABSENT, *(f"X-{n}: a" for n in range(99))), 431, HEADERS),
    ("NUL in a header", request(ABSENT, "X: a\0b"), 400, MALFORMED),
    ("CR in a header", request(ABSENT, "X: a\rX-Request-Id: forged"), 400, MALFORMED),
    ("a space before the colon", request(ABSENT, "X : a"), 400, MALFORMED),
    ("no colon", request(ABSENT, "garbage"), 400, MALFORMED),
    ("a name beyond ASCII", request(ABSENT, "X\xe9: a"), 400, MALFORMED),
    ("two hosts", request(ABSENT, "Host: evil.invalid"), 400, MALFORMED),
    ("no host", f"GET {ABSENT} HTTP/1.1\r\n\r\n".encode(), 400, MALFORMED),
    ("no host in HTTP/1.0", f"GET {ABSENT} HTTP/1.0\r\n\r\n".encode(), 421, HOST),
    ("odd Accept", request(EVENTS, "Accept: text/html;q=x,,;;="), 200, ALL),
    ("no type will do", request(EVENTS, "Accept: text/html, */*;q=0"), 406, "Accept: expected"),
    ("odd Accept-Encoding", request(EVENTS, "Accept-Encoding: br, gzip;q=2, \x7f"), 200, ALL),
    ("no encoding will do", request(EVENTS, "Accept-Encoding: *;q=0, identity;q=0"), 200, ALL),
    ("odd If-None-Match", request(EVENTS, 'If-None-Match: W/"' + '"' * 8000), 200, ALL),
    ("other conditions", request(EVENTS, "If-Match: x", "If-Modified-Since: never"), 200, ALL),
    ("a range", request(EVENTS, "Range: bytes=0-0"), 200, ALL),
    ("another method by a header", request(EVENTS, "X-HTTP-Method-Override: DELETE"), 200, ALL),
    ("an upgrade", request(EVENTS, "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"), 200, ALL),
    # The list of executions.
    ("a line break behind the list", request(f"{EXECUTIONS}%0a"), 404, NOTHING),
    ("NUL behind the list", request(f"{EXECUTIONS}%00"), 404, NOTHING),
    ("two slashes before the list", request(f"/{EXECUTIONS}"), 404, NOTHING),
    ("a slash behind the list", request(f"{EXECUTIONS}/"), 404, "did you mean /v1/executions?"),
    ("its absolute form", request(f"http://localhost{FAILED}"), 200, NONE),
    ("another's absolute form of it", request(f"http://evil.invalid{FAILED}"), 421, HOST),
    ("NUL in a state", request(f"{EXECUTIONS}?state=a%00b"), 400, "state: expected"),
    ("NUL in an object", request(f"{EXECUTIONS}?objectName=a%00b"), 400, "objectName: expected"),
    ("NUL in a namespace", request(f"{EXECUTIONS}?namespace=%00"), 400, "namespace: expected"),
    ("an id with two dots", request(f"{EXECUTIONS}?executionId=.."), 400, "executionId: expected"),
    ("an id too long", request(f"{EXECUTIONS}?executionId={'a' * 129}"), 400, "executionId: "),
    ("a state beyond ASCII", request(f"{EXECUTIONS}?state=%ef%bd%86ailed"), 400, "state: expected"),
    ("a surrogate as an object", request(f"{EXECUTIONS}?objectName=%ed%a0%80"), 400, "UTF-8"),
    ("no end of digits of it", request(f"{EXECUTIONS}?limit={'9' * 5000}"), 400, "limit: expected"),
    ("a year too late", request(f"{EXECUTIONS}?since=10000-01-01T00:00:00Z"), 400, "since: "),
    ("an overlong query of it", request(f"{EXECUTIONS}?state={'a' * 8191}"), 400, "8192 bytes"),
    ("33 states", request(f"{EXECUTIONS}?{'state=failed&' * 33}"), 400, "at most 32"),
    ("a long target of it", request(f"{EXECUTIONS}?state={'a' * 12288}"), 414, "12288 bytes"),
    ("20,000 headers of it", request(FAILED, *("X: a" for _ in range(20_000))), 431, HEADERS),
    ("a body of it", request(FAILED, "Content-Length: 5") + b"hello" + SMUGGLED, 413, BODY),
    ("POST of it", request(FAILED, "Content-Length: 50", method="POST") + SMUGGLED, 405, METHOD),
    ("a watch of it", request(FAILED, "Accept: text/event-stream"), 406, "Accept: expected"),
    ("it in HTTP/1.0", request(FAILED, version="HTTP/1.0"), 200, NONE),
    ("it in HTTP/1.2", request(FAILED, version="HTTP/1.2"), 505, VERSION),
    # Bodies, and requests hidden behind them.
    ("a body", with_body("Content-Length: 5", body=b"hello"), 413, BODY),
    ("a body of an exabyte", with_body("Content-Length: 1" + "0" * 18), 413, BODY),
    ("a chunked body", with_body("Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 413, BODY),
    ("a body that waits", with_body("Content-Length: 5", "Expect: 100-continue"), 413, BODY),
    (
        "length, then chunks",
        with_body("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        413,
        BODY,
    ),
    (
        "chunks, then a length",
        with_body("Transfer-Encoding: chunked", "Content-Length: 5", body=b"1\r\na\r\n0\r\n\r\n"),
        413,
        BODY,
    ),
    ("two lengths", with_body("Content-Length: 0", "Content-Length: 50"), 400, MALFORMED),
    ("two lengths in one", with_body("Content-Length: 0, 50"), 400, MALFORMED),
    ("a length with a sign", with_body("Content-Length: +5", body=b"hello"), 400, MALFORMED),
    ("a length in hex", with_body("Content-Length: 0x5", body=b"hello"), 400, MALFORMED),
    ("a negative length", with_body("Content-Length: -1"), 400, MALFORMED),
    ("no length", with_body("Content-Length:"), 400, MALFORMED),
    ("no coding", with_body("Transfer-Encoding : chunked"), 400, MALFORMED),
    ("another coding", with_body("Transfer-Encoding: xchunked"), 501, CODING),
    ("a coding twice", with_body("Transfer-Encoding: chunked, chunked"), 501, CODING),
    ("a folded coding", with_body("Transfer-Encoding:", " chunked", body=b"0\r\n\r\n"), 413, BODY),
    ("a wrong chunk", request(ABSENT, "Transfer-Encoding: chunked") + b"-1\r\n", 400, MALFORMED),
    ("POST with a body", with_body("Content-Length: 5", method="POST", body=b"hello"), 405, METHOD),
    ("POST of a request", with_body("Content-Length: 50", method="POST"), 405, METHOD),
    (
        "POST with chunks",
        with_body("Transfer-Encoding: chunked", method="POST", body=b"0\r\n\r\n"),
        405,
        METHOD,
    ),
    # Methods and versions.
    ("TRACE", request(EVENTS, method="TRACE"), 405, METHOD),
    ("CONNECT", request(EVENTS, method="CONNECT"), 405, METHOD),
    ("lower case", request(EVENTS, method="get"), 405, METHOD),
    ("DELETE", request(EVENTS, method="DELETE"), 405, METHOD),
    ("a long method", request(EVENTS, method="A" * 10_000), 405, METHOD),
    ("no such method", request(EVENTS, method="G@T"), 400, MALFORMED),
    ("no method", request(EVENTS, method=""), 400, MALFORMED),
    ("HTTP/0.9", f"GET {EVENTS}\r\n\r\n".encode(), 400, MALFORMED),
    ("HTTP/1.2", request(EVENTS, version="HTTP/1.2"), 505, VERSION),
    ("HTTP/11", request(EVENTS, version="HTTP/11"), 400, MALFORMED),
    ("http/1.1", request(EVENTS, version="http/1.1"), 400, MALFORMED),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 505, VERSION),
    ("TLS", bytes.fromhex("16030100c8010000c40303") + bytes(range(200)), 400, MALFORMED),
    ("PROXY", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + request(EVENTS), 400, MALFORMED),
    ("line breaks first", b"\r\n\n\r\n" + request(EVENTS), 200, ALL),
    ("a megabyte of line breaks first", b"\r\n" * 500_000 + request(EVENTS), 200, ALL),
    # Requests that never end.
    ("half a method", b"GE", 408, LATE),
    ("half a line", f"GET {EVENTS} HT".encode(), 408, LATE),
    ("half a head", request(EVENTS)[:-2], 408, LATE),
    ("SSH", b"SSH-2.0-OpenSSH_10.0\r\n", 408, LATE),
    ("Redis", b"*1\r\n$4\r\nPING\r\n", 408, LATE),
]  # fmt: skip


def test_hostile_requests_are_distinct() -> None:
    assert len({name for name, *_ in HOSTILE}) == len({sent for _, sent, *_ in HOSTILE})
    assert len({sent for _, sent, *_ in HOSTILE}) == len(HOSTILE) >= 60


@pytest.mark.parametrize(
    ("sent", "status", "holds"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE]
)
async def test_each_hostile_request_has_its_response(
    still: Reader, logged: io.StringIO, sent: bytes, status: int, holds: str
) -> None:
    """A smuggled request gets no response."""
    [answer] = parse_responses(await exchange(still.api.base_url, sent))
    assert answer.status == status, answer
    expected = await good(still)
    if status == 200:
        assert answer.body == (expected if holds is ALL else holds.encode())
    else:
        check_error(answer, holds)
    assert logged.getvalue() == ""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(path("%00"), method="HEAD"), 400),
        (request("/nothing", method="HEAD"), 404),
        (request(f"{EXECUTIONS}?state=a", method="HEAD"), 400),
        (request(EXECUTIONS, "Accept: text/event-stream", method="HEAD"), 406),
        (request(FAILED, "Content-Length: 1", method="HEAD") + b"x" + SMUGGLED, 413),
        (request(ABSENT, "Content-Length: 1", method="HEAD") + b"x" + SMUGGLED, 413),
        (request(f"{ABSENT}?q={'a' * 12288}", method="HEAD"), 414),
    ],
    ids=["400", "404", "400-list", "406-list", "413-list", "413", "414"],
)
async def test_an_error_for_head_has_no_body(still: Reader, sent: bytes, status: int) -> None:
    [answer] = parse_responses(await exchange(still.api.base_url, sent), to_head=True)
    assert answer.status == status
    assert answer.fields["x-request-id"]
    await good(still)


# Pipelining.


async def test_pipelined_requests_are_answered_in_order(still: Reader) -> None:
    expected = await good(still)
    round_ = [
        (request(EVENTS, close=False), 200, expected),
        (request(ABSENT, close=False), 200, b"[]"),
        (request(FAILED, close=False), 200, b"[]"),
        (request(path("%00"), close=False), 400, ID.encode()),
        (request("/nothing", close=False), 404, NOTHING.encode()),
        (request(EVENTS, method="BREW", close=False), 405, METHOD.encode()),
    ]
    requests = b"".join(sent for sent, *_ in round_) * 40 + request(ABSENT)
    got = parse_responses(await exchange(still.api.base_url, requests))
    assert len(got) == 40 * len(round_) + 1
    for number, answer in enumerate(got[:-1]):
        _, status, holds = round_[number % len(round_)]
        assert answer.status == status
        assert holds in answer.body


async def test_a_malformed_request_ends_the_connection(still: Reader) -> None:
    requests = [request(EVENTS, close=False), b"\0\r\n\r\n", request(EVENTS)]
    first, second = parse_responses(await exchange(still.api.base_url, b"".join(requests)))
    assert (first.status, first.body) == (200, await good(still))
    assert second.status == 400
    check_error(second, MALFORMED)


# Silence.


async def test_silent_connections_are_closed(still: Reader) -> None:
    """A connection without a request gets no response."""
    silent = [asyncio.create_task(exchange(still.api.base_url)) for _ in range(100)]
    await good(still)
    assert set(await asyncio.gather(*silent)) == {b""}
    await good(still)


async def test_an_incomplete_pipelined_head_times_out(still: Reader) -> None:
    requests = request(EVENTS, close=False) + b"GET /v1"
    first, second = parse_responses(await exchange(still.api.base_url, requests))
    assert (first.status, first.body) == (200, await good(still))
    assert second.status == 408
    check_error(second, LATE)
