"""Arithmetic and verdicts of the latency benchmark."""

from collections import Counter
from dataclasses import replace

import msgspec
import pytest

from tests.benchmarks import latency, poller, trees
from tests.benchmarks.course import (
    LISTED,
    Arrivals,
    Course,
    arrivals,
    name_of,
    number_of,
)
from tests.benchmarks.latency import Measured
from tests.benchmarks.latency_worker import Published
from tests.benchmarks.watchers import Note, Seen
from tests.benchmarks.workload import CONCURRENT

SLOW, FAST, FASTEST = (Course("run", rate, 120) for rate in (10, 1000, 10_000))


@pytest.mark.parametrize(
    ("course", "apart", "events", "executions"),
    [(SLOW, 1, 120, 3), (FAST, 10, 2000, 4 + CONCURRENT), (FASTEST, 50, 20_000, 8 + 64)],
)
def test_a_course_polls_for_a_part_of_its_events(
    course: Course, apart: int, events: int, executions: int
) -> None:
    assert (course.apart, course.events, len(course.executions)) == (apart, events, executions)
    assert len(course.polled) == -(-events // apart) == sum(course.polled_lists)
    assert max(course.polled_lists) == LISTED
    in_executions = Counter(course.execution_numbers())
    polled = [in_executions[each] for each in range(len(course.polled_lists))]
    assert polled == course.polled_lists
    assert course.counts().total() == len(course.counts()) == events


def test_polling_of_the_next_list_begins_before_it_has_events() -> None:
    assert [course.ahead for course in (Course("run", 2, 1), SLOW, FAST, FASTEST)] == [1, 1, 10, 20]


def test_courses_have_executions_of_their_own() -> None:
    other = msgspec.structs.replace(FAST, run="another")
    assert not set(FAST.executions) & set(other.executions)
    assert FAST.executions == msgspec.structs.replace(FAST).executions


def test_a_name_identifies_its_event() -> None:
    assert number_of(name_of(4711)) == 4711
    with pytest.raises(ValueError, match="was not published"):
        number_of("another.1")


def test_arrivals_are_compared_with_the_expected_events() -> None:
    assert arrivals([1.0, 2.0, 3.0], [0, 2], {0: 1.5, 2: 2.75}) == Arrivals([0.5, -0.25])
    found = arrivals([1.0, 2.0], range(2), {1: 2.0, 17: 3.0})
    assert found.seconds == [0.0]
    assert found.wrong == [
        f"1 events never seen, the first is {name_of(0)}",
        f"1 events seen but not expected, the first is {name_of(17)}",
    ]


def test_a_repeated_message_is_an_error() -> None:
    one, two = Note(1.0, name_of(1), 1), Note(2.0, name_of(2), 1)
    assert latency.first_messages([Seen(notes=[one]), Seen(notes=[two])]) == ({1: 1.0, 2: 2.0}, [])
    moments, wrong = latency.first_messages(
        [Seen(notes=[one, one._replace(moment=3.0), two._replace(times=2)], problem="closed")]
    )
    assert moments == {1: 1.0, 2: 2.0}
    assert [each.partition(" messages")[0] for each in wrong] == ["a watch ended: closed", "2"]


def test_a_polled_list_has_each_event_once() -> None:
    def body(*counts: int) -> bytes:
        return msgspec.json.encode(
            [{"metadata": {"name": f"o.{n}"}, "count": count} for n, count in enumerate(counts)]
        )

    assert poller.names(body(1, 1)) == ["o.0", "o.1"]
    assert poller.names(b"[]") == []
    with pytest.raises(ValueError, match=r"o\.1 has count 2"):
        poller.names(body(1, 2))


def test_the_rate_counts_published_events() -> None:
    assert Published(returned=[10.5, 12.0], begun=10.0, late=0.0).rate == 1


def measured(course: Course, watched: Arrivals, polled: Arrivals) -> Measured:
    return Measured(
        course=course,
        rate=course.rate,
        late=0.001,
        watched=watched,
        polled=polled,
        requests=100,
        poll_p50=0.001,
        poll_p99=0.002,
        wrong=[],
    )


def test_only_rates_with_a_bar_are_judged() -> None:
    found = [
        measured(course, Arrivals([0.02, 0.04]), Arrivals([0.01, 0.06]))
        for course in (SLOW, FAST, FASTEST)
    ]
    report = latency.report(found, 2)
    assert [(each.bar, each.met) for each in report.verdicts] == [
        (50, False),
        (50, True),
        (150, True),
        (150, True),
    ]
    assert not report.broken


def test_rounds_are_merged_and_judged_by_the_other_tree() -> None:
    rounds = [measured(SLOW, Arrivals([times]), Arrivals([0.01])) for times in (0.02, 0.03)]
    others = [replace(each, watched=Arrivals([0.02]), other_tree=True) for each in rounds]
    report = latency.report([*rounds, *reversed(others)], 1)
    assert [row[:5] for row in report.rows if row[1] == "watch"] == [
        ("10", "watch", "2", "20", "30"),
        (trees.OTHER_TITLE, "watch", "2", "20", "20"),
    ]
    compared = [each for each in report.verdicts if "of the other tree" in each.what]
    assert [each.figure for each in compared] == [1, 1, 1.25, 1.25]


def test_an_event_never_seen_breaks_a_report() -> None:
    report = latency.report([measured(SLOW, Arrivals([]), Arrivals([], ["1 never seen"]))], 2)
    assert not any(each.met for each in report.verdicts)
    assert "p99: inf ms" in report.text()
    assert report.broken == ["10 events a second: polling: 1 never seen"]
