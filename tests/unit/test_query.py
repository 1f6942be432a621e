"""Query parameters and markers: any damage is refused, and only `QueryError` is raised."""

import base64
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from execution_events.events import TIMESTAMP_MAX, TIMESTAMP_MIN
from execution_events.reader import parameters as parameters_module
from execution_events.reader import query as query_module
from execution_events.reader.parameters import QueryError
from execution_events.reader.query import Query, parse_query
from execution_events.store.read.selection import Position, Selection
from tests.support.strategies import names, texts, timestamps

MOMENT = datetime(2018, 8, 20, 6, 41, 44, tzinfo=UTC)


def parsed(execution_id: str = "e", **parameters: Any) -> Query:
    return parse_query(execution_id, urlencode(parameters, doseq=True).encode())


def position(moment: datetime = MOMENT, name: str = "n", namespace: str = "ns") -> Position:
    return Position(moment, name, namespace)


def assert_query_or_refused(content: bytes) -> None:
    refusal = ""
    try:
        parse_query("e", content)
    except QueryError as error:
        refusal = str(error)
    assert refusal.isprintable()
    assert len(refusal) < 300


def test_no_parameter_selects_the_whole_list() -> None:
    query = parsed()
    assert (query.selection, query.limit, query.lang) == (Selection(), None, "both")
    assert query.times == "second"


@pytest.mark.parametrize(
    ("parameters", "selection"),
    [
        ({"order": "asc"}, Selection()),
        ({"order": "desc"}, Selection(descending=True)),
        ({"type": ["b", "a", "b"]}, Selection(only=(("type", ("a", "b")),))),
        ({"reason": "执行成功"}, Selection(only=(("reason", ("执行成功",)),))),
        ({"elemType": "a"}, Selection(only=(("elem_type", ("a",)),))),
        ({"elemId": "a"}, Selection(only=(("elem_id", ("a",)),))),
        ({"actionName": "a"}, Selection(only=(("action_name", ("a",)),))),
        ({"excludeType": "a"}, Selection(exclude=(("type", ("a",)),))),
        ({"excludeReason": "a"}, Selection(exclude=(("reason", ("a",)),))),
        ({"excludeElemType": "a"}, Selection(exclude=(("elem_type", ("a",)),))),
        ({"excludeElemId": "a"}, Selection(exclude=(("elem_id", ("a",)),))),
        ({"excludeActionName": "a"}, Selection(exclude=(("action_name", ("a",)),))),
        ({"q": "100%_\\"}, Selection(text="100%_\\")),
        ({"since": "2018-08-20T06:41:44Z"}, Selection(since=MOMENT)),
        ({"until": "2018-08-20T14:41:44+08:00"}, Selection(until=MOMENT)),
        ({"since": "2018-08-20T06:41:44+0000"}, Selection(since=MOMENT)),
        ({"until": "2018-08-20T01:11:44.000000-0530"}, Selection(until=MOMENT)),
        (
            {"since": "2018-08-20T06:41:44.1234569Z"},
            Selection(since=MOMENT.replace(microsecond=123456)),
        ),
    ],
    ids=str,
)
def test_each_parameter_selects_its_events(
    parameters: dict[str, Any], selection: Selection
) -> None:
    assert parsed(**parameters).selection == selection


@pytest.mark.parametrize("limit", [1, 10, 999, 1000])
def test_a_limit_within_bounds_is_accepted(limit: int) -> None:
    assert parsed(limit=limit).limit == limit


@given(st.binary(max_size=200))
def test_any_bytes_are_a_query_or_an_error(content: bytes) -> None:
    assert_query_or_refused(content)


@given(st.sampled_from([b"limit", b"marker", b"since", b"q", b"type", b"lang"]), st.binary())
def test_any_value_is_a_query_or_an_error(name: bytes, content: bytes) -> None:
    assert_query_or_refused(name + b"=" + content)


def test_only_equivalent_queries_share_a_digest() -> None:
    assert parsed(type=["a", "b"]).digest == parsed(type=["b", "a", "a"]).digest
    assert parsed("e", q="a").digest == parsed("another", q="a").digest
    others: list[dict[str, Any]] = [
        {},
        {"limit": 1},
        {"limit": 2},
        {"order": "desc"},
        {"type": "a"},
        {"excludeType": "a"},
        {"elemType": "a"},
        {"type": ["a", "b"]},
        {"type": "a,b"},
        {"lang": "zh"},
        {"lang": "en"},
        {"times": "micro"},
        {"q": "a"},
        {"since": "2018-08-20T06:41:44Z"},
        {"until": "2018-08-20T06:41:44Z"},
        {"marker": parsed().marker_after(position())},
    ]
    assert len({parsed(**other).digest for other in others}) == len(others)


@given(timestamps, names, names)
def test_a_marker_restores_its_position(moment: datetime, name: str, namespace: str) -> None:
    marker = parsed(type="a").marker_after(position(moment, name, namespace))
    assert parsed(type="a", marker=marker).selection.after == Position(moment, name, namespace)
    assert len(marker) <= parameters_module._MARKER_MAX_CHARACTERS
    assert base64.urlsafe_b64decode(marker + "==")


@pytest.mark.parametrize("moment", [TIMESTAMP_MIN, TIMESTAMP_MAX])
def test_a_marker_restores_the_extreme_positions(moment: datetime) -> None:
    last = position(moment, "é" * 126, "x" * 253)
    marker = parsed().marker_after(last)
    assert parsed(marker=marker).selection.after == last


def test_published_markers_stay_valid() -> None:
    marker = "Ac7CMlzNLmEg9LD7x5PPAAVz2DPf-gChbqJucw"
    assert parsed(type="Warning", limit=10).marker_after(position()) == marker


MARKER = parsed(type="a").marker_after(position(name="object.154c848add38e9f9"))


@given(st.data())
def test_a_changed_marker_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(MARKER)))
    end = data.draw(st.integers(at, min(len(MARKER), at + 3)))
    changed = MARKER[:at] + data.draw(st.text(max_size=3)) + MARKER[end:]
    if changed != MARKER:
        with pytest.raises(QueryError, match=r"^marker: "):
            parsed(type="a", marker=changed)


@pytest.mark.parametrize("last", "AEIMQUYcgkosw048")
def test_a_marker_has_one_spelling(last: str) -> None:
    """The last base64 character can contain unused bits."""
    for marker in (parsed().marker_after(position(name="n" * length)) for length in (1, 2, 3)):
        if len(marker) % 4 and marker[-1] != last:
            with pytest.raises(QueryError):
                parsed(marker=marker[:-1] + last)


@pytest.mark.parametrize(
    "other",
    [
        {"execution_id": "another"},
        {"order": "desc"},
        {"type": "b"},
        {"type": ["a", "b"]},
        {"excludeType": "a"},
        {"lang": "zh"},
        {"q": "a"},
        {"since": "2018-08-20T06:41:44Z"},
    ],
    ids=str,
)
def test_a_marker_of_another_query_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(QueryError, match=r"^marker: "):
        parsed(**({"type": "a", "marker": MARKER} | other))


def test_limit_and_times_can_change_between_pages() -> None:
    for changed in ({"limit": 1}, {"limit": 1000}, {"times": "micro"}):
        assert parsed(type="a", marker=MARKER, **changed).selection.after is not None


def test_naming_the_default_precision_changes_nothing() -> None:
    assert parsed(times="second").digest == parsed().digest


def test_markers_of_later_pages_belong_to_the_same_query() -> None:
    second = parsed(type="a", marker=MARKER).marker_after(position(name="object.2"))
    after = parsed(type="a", marker=second).selection.after
    assert after is not None
    assert after.name == "object.2"


@pytest.mark.parametrize(
    "content",
    [
        (2**62, "n", "ns"),
        (-(2**62), "n", "ns"),
        (2**64 - 1, "n", "ns"),
        (-1, "n", "ns"),
        (0, "n\0", "ns"),
        (0, "n", "\0"),
        (0, "n"),
        (0, "n", "ns", "more"),
        ("0", "n", "ns"),
        (0.5, "n", "ns"),
        (0, b"\xff", "ns"),
        (0, None, "ns"),
        {},
    ],
    ids=str,
)
def test_a_forged_marker_is_a_position_or_an_error(content: object) -> None:
    """Markers are unsigned: anyone can compute a valid digest."""
    scope = query_module._marker_scope("e", Selection(), "both")
    with pytest.raises(QueryError, match=r"^marker: "):
        parsed(marker=parameters_module._marker(scope, msgspec.msgpack.encode(content)))


@given(st.binary(max_size=64))
def test_any_forged_content_is_a_position_or_an_error(content: bytes) -> None:
    marker = parameters_module._marker(
        query_module._marker_scope("e", Selection(), "both"), content
    )
    assert_query_or_refused(b"marker=" + marker.encode())


@given(st.lists(texts, min_size=1, max_size=2), st.text("a &=#<>;%é元\n", min_size=1, max_size=20))
def test_the_link_repeats_every_other_parameter(types: list[str], q: str) -> None:
    parameters: dict[str, Any] = {"type": types, "q": q, "limit": "5", "lang": "zh"}
    assume(len(urlencode(parameters, doseq=True)) < 8000)
    query = parsed(**parameters)
    marker = query.marker_after(position())
    link = query.link(marker)
    assert link[0] == "?"
    assert not set(link) & set('<>"\r\n ')
    assert link.isascii()
    assert parse_qsl(link[1:], keep_blank_values=True) == [
        *(("type", type_) for type_ in types),
        ("q", q),
        ("limit", "5"),
        ("lang", "zh"),
        ("marker", marker),
    ]
    following = parse_query("e", link[1:].encode())
    assert following.link(following.marker_after(position(name="z"))).count("marker=") == 1
