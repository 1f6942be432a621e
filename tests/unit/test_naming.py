"""Names of events: equal for equal texts, whatever the process, the times and the count."""

import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution_events import wire
from execution_events.events import object_of
from execution_events.publisher.event import Event, occurrence_of
from tests.support import golden
from tests.support.golden import Named

NAMES = golden.names()
EVENT = Event(
    execution_id="exec-1",
    namespace="n",
    object_name="gcs-exec-3",
    reason="镜像拉取##PullImage",
    elem_type="KubeDAG.init",
    elem_id="job-a-init",
    action_name="create",
)
IDENTITY = [
    *("execution_id", "namespace", "object_namespace", "object_name", "reason", "message"),
    *("type", "elem_type", "elem_id", "action_name"),
]


def changed(**fields: Any) -> Event:
    return msgspec.structs.replace(EVENT, **fields)


def name_of(**fields: Any) -> str:
    return occurrence_of(changed(**fields)).name


def event_of(record: dict[str, Any]) -> Event:
    """Return the event that a record without a name reports."""
    involved = record["involvedObject"]
    return Event(
        execution_id=record["executionId"],
        namespace=record["metadata"]["namespace"],
        object_name=involved["name"],
        object_namespace=involved.get("namespace"),
        reason=record["reason"],
        message=record.get("message", ""),
        type=record["type"],
        elem_type=record["elemType"],
        elem_id=record["elemId"],
        action_name=record["actionName"],
    )


@pytest.mark.parametrize("case", [pytest.param(each, id=each.case) for each in NAMES])
def test_a_name_is_that_of_the_golden_file(case: Named) -> None:
    occurrence = occurrence_of(event_of(case.record))
    assert occurrence.name == case.name
    assert wire.decode(*wire.encode(occurrence), -1) == occurrence


def test_the_golden_names_cover_every_kind() -> None:
    objects = [case.record["involvedObject"] for case in NAMES]
    sizes = {len(each["name"].encode()) for each in objects}
    cut = {
        each["name"][len(object_of(case.name))]
        for case, each in zip(NAMES, objects, strict=True)
        if len(object_of(case.name).encode()) not in (236, len(each["name"].encode()))
    }
    messages = {case.record.get("message") for case in NAMES}
    assert len(NAMES) >= 12
    assert {236, 237, 253} <= sizes
    assert {"é", "任", "😀"} <= cut
    assert {None, ""} <= messages
    assert max(len((message or "").encode()) for message in messages) == 16 * 1024
    assert any("namespace" not in each for each in objects)


@pytest.mark.parametrize("field", IDENTITY)
def test_an_event_that_differs_in_any_text_has_another_name(field: str) -> None:
    assert name_of() != name_of(**{field: "other"})


def test_times_and_count_do_not_change_the_name() -> None:
    moment = datetime(2018, 8, 20, 6, 41, 44, tzinfo=UTC)
    recurrence = occurrence_of(changed(count=3, first_timestamp=moment))
    assert recurrence.name == name_of()
    assert (recurrence.count, recurrence.first_timestamp) == (3, moment)
    assert name_of(object_namespace="n") == name_of()  # the meaning of None


def test_another_process_gives_the_same_name() -> None:
    script = f"""
from execution_events import Event
from execution_events.publisher.event import occurrence_of
print(occurrence_of({EVENT!r}).name)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert found.stdout.decode().strip() == name_of()


def test_a_name_given_by_the_caller_is_used_once() -> None:
    generated = name_of()
    assert name_of(name="mine.1") == "mine.1"
    assert name_of() == generated != "mine.1"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_long_object_name_is_cut_between_characters(text: str) -> None:
    object_name = (text * 253).encode()[:253].decode(errors="ignore")
    occurrence = occurrence_of(changed(object_name=object_name))
    assert wire.decode(*wire.encode(occurrence), -1) == occurrence
    prefix = object_of(occurrence.name)
    assert object_name.startswith(prefix)
    assert len(occurrence.name.encode()) <= 253
    assert prefix == object_name or len(occurrence.name.encode()) > 253 - 4
    assert occurrence.object_name == object_name
