"""Names of events: equal for recurrences, unique otherwise, for any clock and process."""

import itertools
import re
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from execution_events import wire
from execution_events.errors import EventError
from execution_events.events import object_of
from execution_events.publisher.event import Event
from execution_events.publisher.naming import EventNamer
from tests.support.forks import in_child

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


def name_of(namer: EventNamer, **fields: Any) -> str:
    return namer.occurrence(changed(**fields)).name


def test_a_name_has_the_object_and_the_nanoseconds_of_the_first_report() -> None:
    before = time.time_ns()
    name = name_of(EventNamer())
    found = re.fullmatch(r"gcs-exec-3\.([0-9a-f]{16})-[0-9a-f]{8}", name)
    assert found is not None
    assert before <= int(found[1], 16) <= time.time_ns()


def test_a_recurrence_has_the_same_name_and_its_own_times_and_count() -> None:
    namer = EventNamer()
    moment = datetime(2018, 8, 20, 6, 41, 44, tzinfo=UTC)
    first = namer.occurrence(EVENT)
    second = namer.occurrence(changed(count=3, first_timestamp=moment))
    assert second.name == first.name
    assert (second.count, second.first_timestamp) == (3, moment)
    assert second.last_timestamp >= first.last_timestamp
    assert name_of(namer, object_namespace="n") == first.name  # the meaning of None


@pytest.mark.parametrize("field", IDENTITY)
def test_an_event_that_differs_in_any_text_has_another_name(field: str) -> None:
    namer = EventNamer()
    assert name_of(namer) != name_of(namer, **{field: "other"})


def test_the_namer_is_bounded_and_forgets_the_least_recent_events() -> None:
    namer = EventNamer(size=2)
    a, b = name_of(namer, elem_id="a"), name_of(namer, elem_id="b")
    c = name_of(namer, elem_id="c")
    assert name_of(namer, elem_id="a") == a
    name_of(namer, elem_id="d")
    assert name_of(namer, elem_id="a") == a
    assert name_of(namer, elem_id="c") == c
    assert name_of(namer, elem_id="b") != b
    for element in range(100):
        name_of(namer, elem_id=str(element))
        assert _remembered(namer) <= 4


def _remembered(namer: EventNamer) -> int:
    return len(namer._recent) + len(namer._old)


def test_a_name_given_by_the_caller_is_used_once_and_not_remembered() -> None:
    namer = EventNamer()
    assert name_of(namer, name="mine.1") == "mine.1"
    generated = name_of(namer)
    assert generated != "mine.1"
    assert name_of(namer, name="mine.1") == "mine.1"
    assert name_of(namer) == generated


def test_a_refused_event_is_not_remembered() -> None:
    namer = EventNamer()
    for _ in range(2):
        with pytest.raises(EventError, match="elem_id"):
            namer.occurrence(changed(elem_id="\0"))
    assert _remembered(namer) == 0
    name_of(namer)
    with pytest.raises(EventError, match="count"):
        namer.occurrence(changed(count=0))


@pytest.mark.parametrize(
    "object_name", ["x" * 253, "元" * 84, "a" + "😀" * 63, "a.b." * 60, "x" * 57]
)
def test_a_long_object_name_is_cut_between_characters(object_name: str) -> None:
    occurrence = EventNamer().occurrence(changed(object_name=object_name))
    assert wire.decode(*wire.encode(occurrence), -1) == occurrence
    prefix = object_of(occurrence.name)
    assert object_name.startswith(prefix)
    assert len(occurrence.name.encode()) <= 253
    assert prefix == object_name or len(occurrence.name.encode()) > 253 - 4
    assert occurrence.object_name == object_name


def moments(namer: EventNamer, reports: Iterable[int]) -> list[str]:
    return [name_of(namer, elem_id=str(report)).rpartition(".")[2] for report in reports]


@pytest.mark.parametrize("step", [0, -1, -3_600_000_000_000])
def test_nanoseconds_increase_even_if_the_clock_does_not(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    clock = itertools.count(time.time_ns(), step)
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    # Also over two publishers of one process.
    suffixes = moments(EventNamer(), range(100)) + moments(EventNamer(), range(100))
    assert suffixes == sorted(set(suffixes))


def test_threads_agree_on_the_name_of_one_event_alone() -> None:
    namer, threads, events = EventNamer(), 8, 200
    barrier = threading.Barrier(threads)

    def report() -> list[str]:
        barrier.wait()
        return [name_of(namer, elem_id=str(number)) for number in range(events)]

    with ThreadPoolExecutor(threads) as pool:
        by_thread = [future.result() for future in [pool.submit(report) for _ in range(threads)]]
    assert all(names == by_thread[0] for names in by_thread)
    assert len(set(by_thread[0])) == events


def test_a_forked_child_has_its_own_random_number() -> None:
    namer = EventNamer()
    parent = name_of(namer, elem_id="parent")
    child = in_child(lambda: name_of(namer, elem_id="child"))
    assert child.startswith("gcs-exec-3.")
    assert child[-8:] != parent[-8:]


def test_a_fork_during_naming_leaves_no_lock_behind() -> None:
    namer = EventNamer()
    held, forked = threading.Event(), threading.Event()

    class Slow(str):
        """A string whose hashing blocks, under the namer's lock."""

        def __hash__(self) -> int:
            held.set()
            assert forked.wait(20)
            return super().__hash__()

    with ThreadPoolExecutor(1) as pool:
        naming = pool.submit(name_of, namer, elem_id=Slow("slow"))
        assert held.wait(20)
        child = in_child(lambda: name_of(namer))
        forked.set()
        naming.result()
    assert child.startswith("gcs-exec-3.")
