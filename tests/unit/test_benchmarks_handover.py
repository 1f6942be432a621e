"""Arithmetic and verdicts of the handover benchmark."""

from dataclasses import replace
from itertools import islice

import pytest

from tests.benchmarks import consuming, handover, recurring
from tests.benchmarks.handover import Flow, Handover, Sample

KILLED = Sample("SIGKILL", True, [0, 2], code=-9, exited=0.1, assigned=8, moved=8.5)
STOPPED = Sample("SIGTERM", True, [0, 2], code=0, exited=0.25, assigned=1, moved=1.5)


def test_records_stored_before_the_assignment_do_not_count_as_moved() -> None:
    found = Handover([0, 2], {0: 10, 1: 10, 2: 10})
    found.observe(0.1, {0: 15, 1: 20, 2: 10}, [1])
    found.observe(0.2, {0: 15, 1: 30, 2: 10}, [1])
    assert (found.assigned, found.moved) == (None, {})
    found.observe(0.3, {0: 15, 1: 30, 2: 10}, [0, 1, 2])
    found.observe(0.4, {0: 15, 1: 30, 2: 11}, [0, 1, 2])
    assert (found.assigned, found.moved, found.over) == (0.3, {2: 0.4}, False)
    found.observe(0.5, {0: 16, 1: 30, 2: 12}, [0, 1, 2])
    assert (found.moved, found.over) == ({2: 0.4, 0: 0.5}, True)


def test_partitions_may_have_moved_by_the_first_observation() -> None:
    found = Handover([0], {0: 10, 1: 10})
    found.observe(0.1, {0: 11, 1: 10}, [0, 1])
    assert (found.assigned, found.moved, found.over) == (0.1, {0: 0.1}, True)


@pytest.mark.parametrize(
    ("holding", "expected"),
    [
        ([[0, 2, 4], [1, 3, 5]], True),
        ([[0, 1, 2, 3, 4], [5]], True),
        ([[0, 1, 2, 3, 4, 5], []], False),
        ([[0, 1, 2, 3, 4, 5], [1, 3, 5]], False),
        ([[0, 2], [1, 3, 5]], False),
    ],
)
def test_partitions_are_shared_when_each_is_held_once(
    holding: list[list[int]], expected: bool
) -> None:
    assert handover.shared(holding) is expected


def test_the_last_assignment_counts() -> None:
    log = (
        '{"event": "consumer_started", "topic": "t"}\n'
        '{"event": "partitions_assigned", "partitions": [0, 1]}\n'
        "no JSON\n"
        '{"event": "partitions_assigned", "partitions": [1]}\n'
        '{"event": "partitions_assigned", "par'
    )
    assert consuming.assigned(log) == [1]
    assert consuming.assigned("") == []


def test_records_flow_until_they_are_stopped() -> None:
    flow = Flow(10_000)
    records = flow.records()
    found = [*islice(records, 3)]
    flow.stop()
    assert [*records] == []
    assert flow.published == 3
    assert found == [*recurring.records(3)]


def test_the_slowest_run_is_judged() -> None:
    slow = replace(STOPPED, elder=False, exited=0.5, assigned=2, moved=2.25)
    report = handover.report([KILLED, STOPPED, KILLED, slow], 600, 4711, [])
    assert [verdict.met for verdict in report.verdicts] == [True, False]
    assert report.broken == []


def test_an_unexpected_exit_code_breaks_a_report() -> None:
    found = [replace(KILLED, code=1), replace(STOPPED, code=-15)]
    assert handover.report(found, 600, 4711, ["3 occurrences missing, of 2 events"]).broken == [
        "a consumer ended with exit code 1 after SIGKILL",
        "a consumer ended with exit code -15 after SIGTERM",
        "3 occurrences missing, of 2 events",
    ]
