"""Event ids restore the revisions of their own query; no other text does."""

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution_events.reader.query import Query, parse_query
from execution_events.reader.resumption import (
    _DIGEST_BYTES,
    _digest,
    decode_event_id,
    encode_event_id,
)
from tests.support import strategies

QUERY = parse_query("e", b"type=Normal&q=a&lang=en")
REVISIONS = {"n": 1_780_000_000_000_000, "租户": 2**63 - 1}
ID = encode_event_id(QUERY, REVISIONS)

_queries = st.builds(
    lambda id_, text: parse_query(id_, text.encode()),
    strategies.execution_ids,
    st.sampled_from(["", "type=a", "type=b", "excludeType=a", "q=a", "lang=en", "order=desc"]),
)
_revisions = st.dictionaries(strategies.names, st.integers(1, 2**63 - 1), max_size=3)


@given(_queries, _revisions)
def test_an_id_restores_its_revisions(query: Query, revisions: dict[str, int]) -> None:
    id_ = encode_event_id(query, revisions)
    assert decode_event_id(query, id_) == revisions
    # It is a line of an event stream and a header value.
    assert id_.isascii()
    assert not set(id_) & set("\r\n\0, ")


@given(_queries, _queries, _revisions)
def test_an_id_belongs_to_one_query(one: Query, other: Query, revisions: dict[str, int]) -> None:
    found = decode_event_id(other, encode_event_id(one, revisions))
    is_same = (one.execution_id, one.digest) == (other.execution_id, other.digest)
    assert found == (revisions if is_same else None)


@pytest.mark.parametrize(
    ("execution_id", "query_string"),
    [
        ("f", b"type=Normal&q=a&lang=en"),
        ("e", b"type=Warning&q=a&lang=en"),
        ("e", b"type=Normal&q=b&lang=en"),
        ("e", b"type=Normal&q=a&lang=zh"),
        ("e", b"type=Normal&q=a"),
        ("e", b"excludeType=Normal&q=a&lang=en"),
        ("e", b"type=Normal&q=a&lang=en&order=desc"),
        ("e", b"type=Normal&q=a&lang=en&since=2026-01-01T00:00:00Z"),
        ("e", b"type=Normal&q=a&lang=en&until=2026-01-01T00:00:00Z"),
        ("e", b""),
    ],
)
def test_an_id_of_another_query_is_refused(execution_id: str, query_string: bytes) -> None:
    assert decode_event_id(QUERY, ID) == REVISIONS
    assert decode_event_id(parse_query(execution_id, query_string), ID) is None


def test_equivalent_queries_share_ids() -> None:
    query = parse_query("e", b"lang=en&q=%61&type=Normal&type=Normal")
    assert decode_event_id(query, ID) == REVISIONS


@given(st.integers(0, len(ID) - 1), st.characters())
def test_a_damaged_id_is_refused(index: int, character: str) -> None:
    damaged = ID[:index] + character + ID[index + 1 :]
    # Different base64 of the same bytes is the same id.
    assert decode_event_id(QUERY, damaged) in ([REVISIONS] if decoded(damaged) else [None])


def decoded(id_: str) -> bool:
    try:
        return base64.b64decode(id_, b"-_", validate=True) == base64.urlsafe_b64decode(ID)
    except ValueError:
        return False


@pytest.mark.parametrize("cut", range(len(ID)))
def test_a_truncated_id_is_refused(cut: int) -> None:
    assert decode_event_id(QUERY, ID[:cut]) is None


@given(st.text() | st.binary().map(lambda content: base64.urlsafe_b64encode(content).decode()))
def test_any_other_text_is_refused(text: str) -> None:
    assert decode_event_id(QUERY, text) is None


def forged(content: bytes, version: bytes = b"\1") -> str:
    """Return a forged id: they are unsigned, and anyone can compute the digest."""
    return base64.urlsafe_b64encode(version + _digest(QUERY, content) + content).decode()


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_values)
def test_forged_revisions_are_within_bounds_or_refused(value: object) -> None:
    revisions = decode_event_id(QUERY, forged(msgspec.msgpack.encode(value)))
    if revisions is not None:
        assert revisions == value
        assert all(0 < revision < 2**63 for revision in revisions.values())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xdf\xff\xff\xff\xff",  # A map of 2**32 - 1 missing members.
        b"\x81\xdb\xff\xff\xff\xffn",  # A key of as many bytes.
        b"\x91" * 16_000,
        b"\x81\xa1n" * 5_000,
        b"\x81\xa1\xff\x01",  # Not UTF-8.
        b"\x81\xa3\xed\xa0\x80\x01",  # A lone surrogate.
        b"\x81\xa1n\x00",
        b"\x81\xa1n\xff",
        b"\x81\xa1n\xcf\x80\x00\x00\x00\x00\x00\x00\x00",  # 2**63
        b"\x81\xa1n\xc3",
        b"\x81\xa1n\xcb?\xf0\x00\x00\x00\x00\x00\x00",  # 1.0
        b"\x81\x01\x01",
        b"\x81\xa1n\x01\x00",  # Trailing bytes.
        b"\xc1",
    ],
)
def test_a_hostile_id_is_refused(content: bytes) -> None:
    assert decode_event_id(QUERY, forged(content)) is None


def test_another_version_is_refused() -> None:
    content = base64.urlsafe_b64decode(ID)[1 + _DIGEST_BYTES :]
    assert decode_event_id(QUERY, forged(content)) == REVISIONS
    assert decode_event_id(QUERY, forged(content, b"\2")) is None
