"""Encoding and decoding of records are inverse, and decoding refuses all other bytes."""

import json
import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from execution_events import wire
from execution_events.errors import RecordRefusedError
from execution_events.events import Occurrence
from execution_events.wire import Headers, Origin
from tests.support import golden, strategies
from tests.support.records import occurrence

VALUES = [case.record.value for case in golden.records() if case.record.value is not None]
SMALL_VALUES = [value for value in VALUES if len(value) < 2000]
TOKENS = [b'"', b"{", b"}", b"[", b",", b"\\u0000", b"\\ud800", b"\0", b"\xff", b"0", b"-", b"null"]


@given(strategies.occurrences())
@settings(max_examples=200, deadline=None)
def test_an_encoded_occurrence_is_decoded(occurrence: Occurrence) -> None:
    key, value = wire.encode(occurrence)
    assert key == occurrence.execution_id.encode()
    assert wire.decode(key, value, -1) == occurrence


def test_value_is_compact_utf8_with_the_members_in_the_order_of_the_contract() -> None:
    for case in golden.load("seed.json"):
        assert case.occurrence is not None
        assert wire.encode(case.occurrence) == (case.record.key, case.record.value)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Golden values with up to a few bytes replaced, removed or added."""
    value = draw(st.sampled_from(SMALL_VALUES))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(value)))
        stop = start + draw(st.integers(0, 3))
        value = value[:start] + draw(st.sampled_from(TOKENS) | st.binary(max_size=2)) + value[stop:]
    return value


def decoded(key: bytes | None, value: bytes | None, timestamp: int) -> Occurrence | str:
    """Return the occurrence or the reason of the refusal."""
    try:
        return wire.decode(key, value, timestamp)
    except RecordRefusedError as error:
        return error.reason


documents = strategies.documents().map(lambda document: json.dumps(document).encode())


@given(
    key=st.sampled_from([None, None, b"exec-1", b"e"]) | st.binary(max_size=8),
    value=st.none() | st.binary() | mutated() | documents,
    timestamp=st.integers(0, 2**42) | st.integers(-1, 2**48) | st.integers(-(2**63), 2**63 - 1),
)
@settings(max_examples=500, deadline=None)
def test_decode_is_total(key: bytes | None, value: bytes | None, timestamp: int) -> None:
    outcome = decoded(key, value, timestamp)
    if isinstance(outcome, Occurrence):
        event("accepted")
        check_bounds(outcome)
        assert key in (None, outcome.execution_id.encode())
    else:
        event(outcome)
        assert outcome in wire.REASONS


@given(mutated() | documents)
@settings(max_examples=500, deadline=None)
def test_both_decoders_agree(value: bytes) -> None:
    usual, any_way = (
        decoded_value(decode, value) for decode in (wire._decode_value, wire._decode_any_value)
    )
    event("refused" if isinstance(any_way, tuple) else "accepted")
    assert usual == any_way


def test_the_caches_are_bounded() -> None:
    """A producer could otherwise fill the memory with distinct values."""
    before = wire._is_execution_id.cache_info().misses
    _, value = wire.encode(occurrence(execution_id="e" * 100_000))
    assert decoded(None, value, 0) == wire.INVALID_EVENT
    assert wire._is_execution_id.cache_info().misses == before


def decoded_value(decode: Callable[[bytes], object], value: bytes) -> object:
    """Return all members, or the refusal."""
    try:
        return msgspec.to_builtins(decode(value))
    except RecordRefusedError as error:
        return error.reason, error.detail


def check_bounds(occurrence: Occurrence) -> None:
    """The limits of the contract, stated independently."""
    o = occurrence
    texts = [o.reason, o.type, o.elem_type, o.elem_id, o.action_name]
    names = [o.namespace, o.name, o.object_name, o.object_namespace]
    assert 1 <= len(o.execution_id) <= 128
    assert set(o.execution_id) <= set(string.ascii_letters + string.digits + "._:-")
    assert all(1 <= len(name.encode()) <= 253 for name in names)
    assert all(1 <= len(text) <= 256 for text in texts)
    assert len(o.message.encode()) <= 16384
    assert not any("\0" in text for text in [o.execution_id, o.message, *names, *texts])
    assert type(o.count) is int
    assert 1 <= o.count <= 2**31 - 1
    for moment in (o.first_timestamp, o.last_timestamp):
        assert moment.tzinfo is UTC
        assert 1970 <= moment.year <= 9999


@given(
    moment=st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30)),
    digits=st.text("0123456789", min_size=1, max_size=12),
    offset=st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
@settings(max_examples=500, deadline=None)
def test_times_are_converted_to_utc_and_truncated_to_the_microsecond(
    moment: datetime, digits: str, offset: int
) -> None:
    sign, (hours, minutes) = "-" if offset < 0 else "+", divmod(abs(offset), 60)
    written = f"{moment:%H:%M:%S}.{digits}{sign}{hours:02}:{minutes:02}"
    value = json.dumps(DOCUMENT | {"lastTimestamp": f"{moment.date()}T{written}"}).encode()
    expected = moment.replace(
        microsecond=int(digits[:6].ljust(6, "0")), tzinfo=timezone(timedelta(minutes=offset))
    )
    decoded = wire.decode(None, value, 0)
    assert decoded.last_timestamp == decoded.first_timestamp == expected
    assert decoded.last_timestamp.tzinfo is UTC


SECRET = "Zq7"
KNOWN: dict[str, Any] = {
    "executionId": SECRET,
    "metadata": {"name": f"{SECRET}.1", "namespace": SECRET},
    "involvedObject": {"name": SECRET, "namespace": SECRET},
    "reason": SECRET,
    "message": SECRET,
    "type": SECRET,
    "elemType": SECRET,
    "elemId": SECRET,
    "actionName": SECRET,
}
DOCUMENT = KNOWN | {SECRET: {SECRET: SECRET}}
WRONG = [{SECRET: SECRET}, [SECRET], 777777.5, f"{SECRET}/ \0", SECRET * 9999, None]
WRONG_TIMES = [
    SECRET,
    f"2018-08-20T06:41:44Z{SECRET}",
    "7777-77-77T07:07:07Z",
    "1969-07-07T07:07:07Z",
]
WRONG_COUNTS = [777777e3, 7777777777, -7777, SECRET]
REFUSED = [
    *(DOCUMENT | {member: wrong} for member in KNOWN for wrong in WRONG),
    *(DOCUMENT | {"firstTimestamp": wrong} for wrong in WRONG_TIMES),
    *(DOCUMENT | {"lastTimestamp": wrong} for wrong in WRONG_TIMES),
    *(DOCUMENT | {"count": wrong} for wrong in WRONG_COUNTS),
    {SECRET: SECRET},
    [SECRET],
    SECRET,
]
MALFORMED = [SECRET, f'{{"{SECRET}": {SECRET}', f'{{"{SECRET}": "\udcff{SECRET}"}}']
WRONG_HEADERS: list[Headers] = [
    [("ce_source", SECRET.encode())],
    [("ce_source", SECRET.encode()), ("ce_source", SECRET.encode())],
    [("ce_source", SECRET.encode()), ("ce_sequence", SECRET.encode())],
    [("ce_source", SECRET.encode() * 100), ("ce_sequence", b"777777")],
    [("ce_source", SECRET.encode() + b"\xff"), ("ce_sequence", b"777777")],
]


@pytest.mark.parametrize("value", [*map(json.dumps, REFUSED), *MALFORMED])
def test_details_hold_no_content_of_the_value(value: str) -> None:
    with pytest.raises(RecordRefusedError) as refused:
        wire.decode(None, value.encode("utf-8", "surrogateescape"), 0)
    check_detail(refused.value)


def test_details_hold_no_content_of_the_key() -> None:
    value = json.dumps(DOCUMENT).encode()
    with pytest.raises(RecordRefusedError) as refused:
        wire.decode(b"777777", value, 0)
    check_detail(refused.value)


@pytest.mark.parametrize("headers", WRONG_HEADERS)
def test_details_hold_no_content_of_the_headers(headers: Headers) -> None:
    with pytest.raises(RecordRefusedError) as refused:
        wire.decode_origin(headers)
    check_detail(refused.value)


def check_detail(error: RecordRefusedError) -> None:
    assert error.reason in wire.REASONS
    assert error.detail
    assert SECRET not in str(error)
    assert "7777" not in str(error)


@given(strategies.origins)
@settings(max_examples=300, deadline=None)
def test_an_encoded_origin_is_decoded(origin: Origin) -> None:
    assert wire.decode_origin(wire.encode_headers(origin.source, origin.sequence)) == origin


def test_a_record_without_the_headers_has_no_origin() -> None:
    assert wire.decode_origin([]) is None


def decoded_origin(headers: Headers) -> Origin | str | None:
    """Return the origin or the reason of the refusal."""
    try:
        return wire.decode_origin(headers)
    except RecordRefusedError as error:
        return error.reason


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ce_source", "ce_sequence", "ce_id"]),
            st.none() | st.binary(max_size=3) | st.integers().map(lambda n: b"%d" % n),
        ),
        max_size=4,
    )
)
@settings(max_examples=400, deadline=None)
def test_decode_origin_is_total(headers: Headers) -> None:
    stated = sorted(name for name, _ in headers if name != "ce_id")
    origin = decoded_origin(headers)
    if isinstance(origin, str):
        assert origin == wire.INVALID_HEADERS
        assert stated
    elif origin is None:
        assert stated == []
    else:
        assert stated == ["ce_sequence", "ce_source"]
        assert 1 <= len(origin.source) <= 256
        assert "\0" not in origin.source
        assert 0 <= origin.sequence <= 2**63 - 1
