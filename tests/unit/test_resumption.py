"""The ids of a watch: each brings its position back for its own query, and no other text does."""

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution_events.reader.query import Query, parse_query
from execution_events.reader.resumption import _DIGEST_BYTES, _digest, position_of, resumption_id
from tests.support import strategies

QUERY = parse_query("e", b"type=Normal&q=a&lang=en")
POSITION = {"n": 1_780_000_000_000_000, "租户": 2**63 - 1}
ID = resumption_id(QUERY, POSITION)

_queries = st.builds(
    lambda id_, text: parse_query(id_, text.encode()),
    strategies.execution_ids,
    st.sampled_from(["", "type=a", "type=b", "excludeType=a", "q=a", "lang=en", "order=desc"]),
)
_positions = st.dictionaries(strategies.names, st.integers(1, 2**63 - 1), max_size=3)


@given(_queries, _positions)
def test_an_id_brings_its_position_back(query: Query, position: dict[str, int]) -> None:
    id_ = resumption_id(query, position)
    assert position_of(query, id_) == position
    # It is sent as a line of an event stream and comes back as a header.
    assert id_.isascii()
    assert not set(id_) & set("\r\n\0, ")


@given(_queries, _queries, _positions)
def test_an_id_is_that_of_one_query(one: Query, other: Query, position: dict[str, int]) -> None:
    found = position_of(other, resumption_id(one, position))
    is_same = (one.execution_id, one.digest) == (other.execution_id, other.digest)
    assert found == (position if is_same else None)


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
def test_an_id_of_another_query_is_none(execution_id: str, query_string: bytes) -> None:
    assert position_of(QUERY, ID) == POSITION
    assert position_of(parse_query(execution_id, query_string), ID) is None


def test_what_means_the_same_goes_on() -> None:
    query = parse_query("e", b"lang=en&q=%61&type=Normal&type=Normal")
    assert position_of(query, ID) == POSITION


@given(st.integers(0, len(ID) - 1), st.characters())
def test_a_damaged_id_is_none(place: int, character: str) -> None:
    damaged = ID[:place] + character + ID[place + 1 :]
    # What base64 reads alike is the same id.
    assert position_of(QUERY, damaged) in ([POSITION] if decoded(damaged) else [None])


def decoded(id_: str) -> bool:
    try:
        return base64.b64decode(id_, b"-_", validate=True) == base64.urlsafe_b64decode(ID)
    except ValueError:
        return False


@pytest.mark.parametrize("cut", range(len(ID)))
def test_a_part_of_an_id_is_none(cut: int) -> None:
    assert position_of(QUERY, ID[:cut]) is None


@given(st.text() | st.binary().map(lambda content: base64.urlsafe_b64encode(content).decode()))
def test_no_other_text_is_an_id(text: str) -> None:
    assert position_of(QUERY, text) is None


def signed(content: bytes, version: bytes = b"\1") -> str:
    """An id of whoever knows how they are made, which is no secret."""
    return base64.urlsafe_b64encode(version + _digest(QUERY, content) + content).decode()


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_values)
def test_a_forged_position_is_within_bounds_or_none(value: object) -> None:
    position = position_of(QUERY, signed(msgspec.msgpack.encode(value)))
    if position is not None:
        assert position == value
        assert all(0 < revision < 2**63 for revision in position.values())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xdf\xff\xff\xff\xff",  # A map of 2**32 - 1 members that do not come.
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
        b"\x81\xa1n\x01\x00",  # And what follows.
        b"\xc1",
    ],
)
def test_a_hostile_position_is_none(content: bytes) -> None:
    assert position_of(QUERY, signed(content)) is None


def test_another_version_is_none() -> None:
    content = base64.urlsafe_b64decode(ID)[1 + _DIGEST_BYTES :]
    assert position_of(QUERY, signed(content)) == POSITION
    assert position_of(QUERY, signed(content, b"\2")) is None
