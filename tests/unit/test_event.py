"""Events have the limits of records, and defaults for missing fields."""

from datetime import UTC, date, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import msgspec
import pytest
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st

from execution_events import events, wire
from execution_events.errors import EventError, RecordRefusedError
from execution_events.events import Occurrence
from execution_events.publisher.event import Event, occurrence_of
from tests.support import strategies

EVENT = Event(
    execution_id="exec-1",
    namespace="n",
    object_name="o",
    reason="镜像拉取##PullImage",
    elem_type="KubeDAG.init",
    elem_id="job-a-init",
    action_name="create",
)
TEXTS = [field for field in EVENT.__struct_fields__ if not field.endswith(("stamp", "count"))]
SECRET = "Zq7"


def changed(**fields: Any) -> Event:
    return msgspec.structs.replace(EVENT, **fields)


# Sizes around every limit, in characters of one to four bytes, and characters no record may have.
_edges = st.builds(
    lambda character, size, tail: character * size + tail,
    st.sampled_from(["x", "é", "元", strategies.ASTRAL]),
    st.sampled_from([0, 1, 63, 64, 84, 85, 126, 127, 128, 129, 252, 253, 254, 255, 256, 257]),
    st.sampled_from(["", "", "", "x", "\n", "\0", "\ud800", "\udfff"]),
)
_messages = st.builds(
    lambda character, size, tail: character * size + tail,
    st.sampled_from(["x", "é", strategies.ASTRAL]),
    st.sampled_from([0, 4095, 4096, 8191, 8192, 16383, 16384, 16385]),
    st.sampled_from(["", "", "x", "é", "\0", "\ud800"]),
)
_times = st.one_of(
    st.datetimes(timezones=st.just(UTC)),
    st.builds(
        lambda moment, minutes: moment.replace(tzinfo=timezone(timedelta(minutes=minutes))),
        st.sampled_from(
            [
                datetime.min,
                datetime(1969, 12, 31, 23, 59, 59, 999999),
                datetime(1970, 1, 1),
                datetime(2018, 8, 20, 6, 41, 44, 978344),
                datetime.max,
            ]
        ),
        st.sampled_from([0, 0, 1, -1, 480, -1439, 1439]),
    ),
)
_counts = st.sampled_from([-1, 0, 1, 2, 2**31 - 1, 2**31, 2**63, 2**64, True, False])


@st.composite
def written(draw: st.DrawFn) -> Event:
    """Events with a few fields near their limits."""
    fields: dict[str, Any] = {}
    for field in draw(st.lists(st.sampled_from(EVENT.__struct_fields__), max_size=3)):
        match field:
            case "message":
                fields[field] = draw(_messages)
            case "first_timestamp" | "last_timestamp":
                fields[field] = draw(_times)
            case "count":
                fields[field] = draw(_counts)
            case "execution_id":
                fields[field] = draw(strategies.execution_ids | _edges | st.text(max_size=3))
            case _:
                fields[field] = draw(_edges | st.text(max_size=3))
    return changed(**fields)


def decoded(event: Event) -> Occurrence | None:
    """Decode an unchecked record with the fields of `event`; None if it is refused."""
    last = event.last_timestamp or event.first_timestamp or events.TIMESTAMP_MIN
    unchecked = Occurrence(
        execution_id=event.execution_id,
        namespace=event.namespace,
        name="o.1" if event.name is None else event.name,
        object_name=event.object_name,
        object_namespace=(
            event.namespace if event.object_namespace is None else event.object_namespace
        ),
        reason=event.reason,
        message=event.message,
        first_timestamp=event.first_timestamp or last,
        last_timestamp=last,
        count=event.count,
        type=event.type,
        elem_type=event.elem_type,
        elem_id=event.elem_id,
        action_name=event.action_name,
    )
    try:
        return wire.decode(*wire.encode(unchecked), -1)
    except (RecordRefusedError, UnicodeEncodeError, OverflowError):
        return None


@given(written())
@settings(max_examples=2000, deadline=None)
def test_an_event_is_accepted_exactly_when_consumers_accept_its_record(event: Event) -> None:
    expected = decoded(event)
    try:
        occurrence = occurrence_of(event)
    except EventError:
        note("refused")
        assert expected is None
        return
    note("accepted")
    assert expected is not None
    assert wire.decode(*wire.encode(occurrence), -1) == occurrence
    filled: dict[str, Any] = {"name": occurrence.name}
    if event.last_timestamp is None:
        filled["last_timestamp"] = occurrence.last_timestamp
        filled["first_timestamp"] = event.first_timestamp or occurrence.last_timestamp
    assert occurrence == msgspec.structs.replace(
        expected, **(filled if event.name is None else filled | {"name": event.name})
    )


@given(strategies.occurrences())
@settings(max_examples=300, deadline=None)
def test_every_occurrence_can_be_written_as_an_event(occurrence: Occurrence) -> None:
    event = Event(**{field: getattr(occurrence, field) for field in occurrence.__struct_fields__})
    assert occurrence_of(event) == occurrence


WRONG: list[tuple[str, Any]] = [
    *((field, 7) for field in TEXTS),
    *((field, SECRET.encode()) for field in TEXTS),
    *((field, [SECRET]) for field in TEXTS),
    *((field, None) for field in TEXTS if field not in ("name", "object_namespace")),
    *((field, f"{SECRET}\0") for field in TEXTS),
    *((field, f"{SECRET}\ud800") for field in TEXTS),
    *((field, SECRET * 9999) for field in TEXTS),
    ("execution_id", f"{SECRET}/"),
    ("execution_id", f"{SECRET}\n"),
    ("execution_id", f"{SECRET}é"),
    *((field, "") for field in TEXTS if field != "message"),
    *(("count", count) for count in (1.0, "1", None, True, 0, -1, 2**31)),
    *(
        (field, moment)
        for field in ("first_timestamp", "last_timestamp")
        for moment in (
            datetime(2018, 8, 20),
            date(2018, 8, 20),
            "2018-08-20T06:41:44Z",
            0,
            datetime(1969, 12, 31, tzinfo=UTC),
            datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
            datetime.max.replace(tzinfo=timezone(-timedelta(hours=1))),
        )
    ),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_an_error_names_the_field_without_its_content(field: str, value: Any) -> None:
    with pytest.raises(EventError, match=f"^{field}: ") as wrong:
        occurrence_of(changed(**{field: value}))
    assert SECRET not in str(wrong.value)
    assert "\0" not in str(wrong.value)
    assert wrong.value.__cause__ is None


def test_first_after_last_is_refused_only_if_both_are_given() -> None:
    later = datetime(9999, 1, 1, tzinfo=UTC)
    now = datetime.now(UTC)
    with pytest.raises(EventError, match="first_timestamp: after last_timestamp"):
        occurrence_of(changed(first_timestamp=later, last_timestamp=now))
    occurrence = occurrence_of(changed(first_timestamp=later))
    assert occurrence.first_timestamp == occurrence.last_timestamp == later


def test_missing_fields_have_defaults() -> None:
    before = datetime.now(UTC)
    occurrence = occurrence_of(EVENT)
    assert occurrence.first_timestamp == occurrence.last_timestamp
    assert before <= occurrence.last_timestamp <= datetime.now(UTC)
    assert occurrence.object_namespace == "n"
    assert (occurrence.type, occurrence.message, occurrence.count) == ("Normal", "", 1)


def test_times_are_in_utc() -> None:
    moment = datetime(2018, 8, 20, 14, 41, 44, tzinfo=timezone(timedelta(hours=8)))
    occurrence = occurrence_of(changed(last_timestamp=moment))
    assert occurrence.last_timestamp.tzinfo is occurrence.first_timestamp.tzinfo is UTC
    assert occurrence.last_timestamp == occurrence.first_timestamp == moment


class Reason(StrEnum):
    PULL = "镜像拉取##PullImage"


class Marked(str):
    """A subclass of `str`, unknown to the codec."""


@pytest.mark.parametrize("text", [Reason.PULL, Marked("镜像拉取##PullImage")])
def test_subclasses_of_str_are_accepted_as_text(text: str) -> None:
    first, second = occurrence_of(changed(reason=text)), occurrence_of(EVENT)
    assert first.name == second.name
    assert type(first.reason) is str
    assert wire.decode(*wire.encode(first), -1) == first
