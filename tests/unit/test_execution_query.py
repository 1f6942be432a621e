"""Parameters of lists of executions: any damage is refused, and only `QueryError` is raised."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution_events.reader.execution_query import ExecutionQuery, parse_execution_query
from execution_events.reader.parameters import QueryError
from execution_events.store.read.executions import (
    ExecutionPosition,
    ExecutionSelection,
    page_statement,
)
from tests.support.strategies import names, timestamps

MOMENT = datetime(2018, 8, 20, 6, 41, 44, tzinfo=UTC)
POSITION = ExecutionPosition(MOMENT, "e", "n")


def parsed(**parameters: Any) -> ExecutionQuery:
    return parse_execution_query(urlencode(parameters, doseq=True).encode())


def test_no_parameter_selects_the_newest_of_all() -> None:
    query = parsed()
    assert query.selection == ExecutionSelection(descending=True)
    assert (query.limit, query.lang, query.times) == (100, "both", "second")


@pytest.mark.parametrize(
    ("parameters", "selection"),
    [
        ({"order": "asc"}, ExecutionSelection(descending=False)),
        ({"order": "desc"}, ExecutionSelection()),
        ({"executionId": ["b", "a", "b"]}, ExecutionSelection(execution_ids=("a", "b"))),
        ({"state": ["timed_out", "failed"]}, ExecutionSelection(states=("failed", "timed_out"))),
        ({"namespace": "元"}, ExecutionSelection(namespaces=("元",))),
        ({"objectName": "a b"}, ExecutionSelection(object_names=("a b",))),
        ({"since": "2018-08-20T06:41:44Z"}, ExecutionSelection(since=MOMENT)),
        ({"until": "2018-08-20T14:41:44+0800"}, ExecutionSelection(until=MOMENT)),
    ],
    ids=str,
)
def test_each_parameter_selects_its_executions(
    parameters: dict[str, Any], selection: ExecutionSelection
) -> None:
    assert parsed(**parameters).selection == selection


@given(st.binary(max_size=200))
def test_any_bytes_are_a_query_or_an_error(content: bytes) -> None:
    _assert_query_or_refused(content)


@given(
    st.sampled_from([b"limit", b"marker", b"since", b"executionId", b"state", b"namespace"]),
    st.binary(),
)
def test_any_value_is_a_query_or_an_error(name: bytes, content: bytes) -> None:
    _assert_query_or_refused(name + b"=" + content)


def _assert_query_or_refused(content: bytes) -> None:
    refusal = ""
    try:
        parse_execution_query(content)
    except QueryError as error:
        refusal = str(error)
    assert refusal.isprintable()
    assert len(refusal) < 300


def test_only_equivalent_queries_share_a_digest() -> None:
    assert parsed(state=["failed", "running"]).digest == parsed(state=["running", "failed"]).digest
    others: list[dict[str, Any]] = [
        {},
        {"limit": 1},
        {"order": "asc"},
        {"executionId": "a"},
        {"executionId": ["a", "b"]},
        {"state": "failed"},
        {"namespace": "a"},
        {"objectName": "a"},
        {"since": "2018-08-20T06:41:44Z"},
        {"until": "2018-08-20T06:41:44Z"},
        {"lang": "en"},
        {"times": "micro"},
        {"marker": parsed().marker_after(POSITION)},
    ]
    assert len({parsed(**other).digest for other in others}) == len(others)


@given(timestamps, names, names)
@settings(deadline=None)
def test_a_marker_restores_its_position(moment: datetime, name: str, namespace: str) -> None:
    position = ExecutionPosition(moment, name, namespace)
    marker = parsed(state="failed").marker_after(position)
    assert parsed(state="failed", marker=marker).selection.after == position


def test_published_markers_stay_valid() -> None:
    marker = "AZeyzfhZa7yr98RWXJPPAAVz2DPf-gChZaFu"
    assert parsed(state="failed", marker=marker).selection.after == POSITION


@pytest.mark.parametrize(
    ("order", "year", "begin", "end"),
    [
        ("desc", None, 2019, 2017),
        ("desc", 2018, 2018, 2017),
        ("desc", 2020, 2019, 2017),
        ("desc", 2000, 2000, 2017),
        ("asc", None, 2017, 2019),
        ("asc", 2018, 2018, 2019),
        ("asc", 2020, 2020, 2019),
        ("asc", 2000, 2017, 2019),
    ],
)
def test_a_position_outside_the_range_does_not_widen_it(
    order: str, year: int | None, begin: int, end: int
) -> None:
    """Markers are unsigned: anyone can compute one of any position."""
    parameters = {"since": "2017-01-01T00:00:00Z", "until": "2019-01-01T00:00:00Z", "order": order}
    if year is not None:
        position = POSITION._replace(created_at=MOMENT.replace(year=year))
        parameters["marker"] = parsed(**parameters).marker_after(position)
    _, arguments = page_statement(parsed(**parameters).selection, None, 1)
    times = [each for each in arguments if isinstance(each, str) and each[4:5] == "-"]
    assert [int(each[:4]) for each in times] == [begin, end]


@pytest.mark.parametrize(
    ("allowed", "selected", "expected"),
    [
        (None, (), None),
        (None, ("a", "b"), ["a", "b"]),
        ({"b", "a"}, (), ["a", "b"]),
        ({"a", "b"}, ("b", "c"), ["b"]),
        ({"a"}, ("b",), []),
        (set(), (), []),
        (set(), ("a",), []),
    ],
)
def test_only_readable_namespaces_are_searched(
    allowed: set[str] | None, selected: tuple[str, ...], expected: list[str] | None
) -> None:
    for ids in ((), ("e",)):
        selection = ExecutionSelection(namespaces=selected, execution_ids=ids)
        readable = None if allowed is None else frozenset(allowed)
        statement, arguments = page_statement(selection, readable, 1)
        if expected is None:
            assert "tenant." not in statement
            assert "ANY ($" not in statement.replace("execution_id = ANY ($", "")
        else:
            assert expected in arguments
