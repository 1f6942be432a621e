"""The oracle finds each kind of difference, and accepts a correct state."""

import json
from typing import Any

import pytest

from tests.faults.author import Author
from tests.faults.database import (
    EventRow,
    ExecutionRow,
    LetterRow,
    OffsetMove,
    PipelineRow,
    RateRow,
    Stored,
)
from tests.faults.model import fold
from tests.faults.oracle import Acknowledged, Published, Verdict, judge
from tests.faults.record import LogRecord

SECOND = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
ENDS = {0: 4, 1: 1}
KEY = ("execution-1", "tenant", "pod.1")
FIELDS = ("pod", "tenant", "启动##ActionStart", "", "Normal", "KubeDAG.init", "job", "create")


def record(partition: int, offset: int, sequence: int | None = None, **fields: Any) -> LogRecord:
    body = {
        "executionId": "execution-1",
        "metadata": {"name": "pod.1", "namespace": "tenant"},
        "reason": "启动##ActionStart",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "count": 5,
        "type": "Normal",
        "elemType": "KubeDAG.init",
        "elemId": "job",
        "actionName": "create",
    } | fields
    headers = () if sequence is None else (("ce_source", b"s"), ("ce_sequence", b"%d" % sequence))
    key = str(body["executionId"]).encode()
    return LogRecord(partition, offset, 7, key, json.dumps(body).encode(), headers)


LOG = [
    record(0, 0, sequence=1),
    record(0, 1, sequence=1),  # a copy
    record(0, 2, sequence=2, count=0),  # refused
    record(0, 3, count=7, lastTimestamp="2026-01-01T08:00:01.5+08:00"),
    record(1, 0, executionId="execution-2"),
]


def pipeline(ends: dict[int, int]) -> dict[int, PipelineRow]:
    return {partition: PipelineRow(end, end, 0, None) for partition, end in ends.items()}


def stored(**changes: Any) -> Stored:
    last = SECOND + 1_500_000
    second = ("execution-2", "tenant", "pod.1")
    return Stored(
        events={
            KEY: EventRow(FIELDS, SECOND, SECOND, last, 12),
            second: EventRow(FIELDS, SECOND, SECOND, SECOND, 5),
        },
        executions={
            KEY[:2]: ExecutionRow(1, 12, SECOND, last),
            second[:2]: ExecutionRow(1, 5, SECOND, SECOND),
        },
        letters=[((0, 2), LetterRow(7, LOG[2].key, LOG[2].value, LOG[2].headers, REASON))],
        progress=dict(ENDS),
        watermarks={(0, "s"): 2},
        rates={0: RateRow(4, 12, 1), 1: RateRow(1, 5, 0)},
        pipeline=pipeline(ENDS),
        moves=[
            OffsetMove("1", 0, None, 0),
            OffsetMove("2", 1, None, 0),
            OffsetMove("3", 0, 0, 2),
            OffsetMove("4", 0, 2, 4),
            OffsetMove("4", 1, 0, 1),
        ],
        growth={"3": 5, "4": 12},
        touched={"3", "4"},
        states=[],
    )._replace(**changes)


REASON = "invalid_event"


def verdict(log: list[LogRecord] = LOG, **changes: Any) -> Verdict:
    return judge(log, stored(**changes), ENDS, [Acknowledged((0, 0), "s", 1)])


def test_accepts_a_correct_state() -> None:
    assert verdict() == Verdict(0, 0, [], records=5, events=2, letters=1, duplicates=1)


@pytest.mark.parametrize(("count", "lost", "doubled"), [(7, 1, 0), (17, 0, 1)])
def test_finds_a_lost_and_a_doubled_record(count: int, lost: int, doubled: int) -> None:
    events = stored().events
    events[KEY] = events[KEY]._replace(occurrences=count)

    found = verdict(events=events)

    assert (found.lost, found.doubled) == (lost, doubled)
    assert f"count {count}, not 12" in found.differences[0]


@pytest.mark.parametrize(
    ("column", "value"),
    [("list_position", 1), ("first", 1), ("last", 1), ("fields", ("x", *FIELDS[1:]))],
)
def test_finds_a_wrong_column_of_an_event(column: str, value: Any) -> None:
    events = stored().events
    events[KEY] = events[KEY]._replace(**{column: value})
    assert len(verdict(events=events).differences) == 1


def test_reports_states_that_differ_from_the_events() -> None:
    assert verdict(states=["action a: wrong"]).differences == ["state: action a: wrong"]


def test_finds_a_missing_and_an_unknown_event() -> None:
    events = stored().events
    events["other", "tenant", "pod.1"] = events.pop(KEY)

    found = verdict(events=events)

    assert (found.lost, found.doubled) == (1, 1)
    assert len(found.differences) == 2


@pytest.mark.parametrize("column", ExecutionRow._fields)
def test_finds_a_wrong_column_of_an_execution(column: str) -> None:
    executions = stored().executions
    executions[KEY[:2]] = executions[KEY[:2]]._replace(**{column: 3})
    assert len(verdict(executions=executions).differences) == 1


def test_finds_missing_extra_repeated_and_changed_dead_letters() -> None:
    position, letter = stored().letters[0]
    extra = ((1, 0), letter)
    for letters, what in (
        ([], "missing"),
        ([(position, letter), extra], "expected none"),
        ([(position, letter), (position, letter)], "stored twice"),
        ([(position, letter._replace(value=b"{}"))], "not LetterRow"),
        ([(position, letter._replace(headers=()))], "not LetterRow"),
        ([(position, letter._replace(reason="not_json"))], "not LetterRow"),
    ):
        [difference] = verdict(letters=letters).differences
        assert what in difference


@pytest.mark.parametrize(
    "changes",
    [
        {"progress": {0: 3, 1: 1}},
        {"progress": {0: 4}},
        {"watermarks": {(0, "s"): 1}},
        {"watermarks": {(0, "s"): 2, (1, "s"): 1}},
    ],
)
def test_finds_wrong_offsets_and_watermarks(changes: dict[str, Any]) -> None:
    assert len(verdict(**changes).differences) == 1


@pytest.mark.parametrize(
    "rates",
    [
        {0: RateRow(4, 12, 1)},
        {0: RateRow(3, 12, 1), 1: RateRow(1, 5, 0)},
        {0: RateRow(4, 17, 1), 1: RateRow(1, 5, 0)},
        {0: RateRow(4, 12, 1), 1: RateRow(1, 5, 1)},
        {0: RateRow(4, 12, 1), 1: RateRow(1, 5, 0), 2: RateRow(1, 1, 0)},
    ],
)
def test_finds_wrong_rates(rates: dict[int, RateRow]) -> None:
    assert len(verdict(rates=rates).differences) == 1


@pytest.mark.parametrize(
    ("row", "differences"),
    [
        (PipelineRow(1, 0, 0, None), 0),
        (PipelineRow(1, None, None, None), 0),
        (PipelineRow(0, 1, 1, None), 1),
        (PipelineRow(1, 2, 1, None), 1),
        (PipelineRow(1, 1, 1, None), 1),
        (None, 1),
    ],
)
def test_finds_a_wrong_row_of_the_pipeline(row: PipelineRow | None, differences: int) -> None:
    rows = pipeline(ENDS)
    if row is None:
        del rows[1]
    else:
        rows[1] = row
    assert len(verdict(pipeline=rows).differences) == differences


@pytest.mark.parametrize(
    ("moves", "what"),
    [
        (
            [*stored().moves[:3], OffsetMove("4", 0, 1, 4), OffsetMove("4", 1, 0, 1)],
            "where no batch ended",
        ),
        ([*stored().moves, OffsetMove("5", 0, 4, 3), OffsetMove("6", 0, 3, 4)], "goes back"),
        ([*stored().moves, OffsetMove("5", 0, 4, None)], "deletes"),
        (stored().moves[:-1], "the last batch ends at 0"),
    ],
)
def test_finds_gaps_and_overlaps_between_batches(moves: list[OffsetMove], what: str) -> None:
    assert any(what in difference for difference in verdict(moves=moves).differences)


def test_finds_batches_that_add_other_records_than_their_own() -> None:
    # The sum of both is correct.
    [first, second] = verdict(growth={"3": 6, "4": 11}).differences
    assert "added 6, not 5" in first
    assert "added 11, not 12" in second
    [alone] = verdict(growth={"3": 5, "4": 12, "5": 1}).differences
    assert "moved no offset" in alone


def test_offsets_of_aborted_and_control_records_are_a_gap() -> None:
    ends = {0: 7, 1: 1}
    moves = [*stored().moves, OffsetMove("5", 0, 4, 7)]
    log = stored(progress=ends, pipeline=pipeline(ends), moves=moves)
    assert judge(LOG, log, ends, []).differences == []


@pytest.mark.parametrize("batch", ["4", "5"])
def test_finds_a_counted_record_that_was_aborted(batch: str) -> None:
    # A record of 9 occurrences at offset 5, in a batch of others or alone.
    ends = {0: 7, 1: 1}
    moves = [*stored().moves, OffsetMove("5", 0, 4, 7)]
    events = stored().events
    events[KEY] = events[KEY]._replace(occurrences=21)
    growth = {"3": 5, "4": 12}
    growth[batch] = growth.get(batch, 0) + 9

    state = stored(
        progress=ends, pipeline=pipeline(ends), moves=moves, events=events, growth=growth
    )
    found = judge(LOG, state, ends, [])

    assert found.doubled == 1
    assert "9 too many" in found.differences[0]
    assert f"transaction {batch} of" in found.differences[-1]


def test_finds_an_acknowledged_record_that_the_log_has_lost() -> None:
    found = judge(LOG, stored(), ENDS, [Acknowledged((0, 9))])
    assert found.differences == ["acknowledged: (0, 9) is not in the log"]


@pytest.mark.parametrize(
    ("begun", "durable", "wrong"),
    [
        ({}, {}, []),
        ({"pod.1": 17}, {"pod.1": 17}, []),
        ({"pod.1": 17, "other": 7}, {"pod.1": 17}, []),
        ({"other": 7}, {"other": 7}, ["other: the log counts 0, not 7"]),
        ({"pod.1": 34}, {"pod.1": 34}, ["pod.1: the log counts 17, not 34"]),
        ({"pod.1": 5}, {}, ["pod.1: the log counts 17, not 0 or 5"]),
    ],
)
def test_finds_published_events_that_the_log_counts_differently(
    begun: dict[str, int], durable: dict[str, int], wrong: list[str]
) -> None:
    found = judge(LOG, stored(), ENDS, [], published=Published(begun, durable))
    assert found.differences == [f"published: {each}" for each in wrong]


def test_an_event_in_two_partitions_may_have_the_fields_of_either() -> None:
    log = [record(0, 0, message="a"), record(1, 0, message="b")]
    [event] = fold(log).events().values()
    assert event.count == 10
    assert {fields[3] for fields in event.fields} == {"a", "b"}


def test_only_the_poison_of_an_author_is_refused() -> None:
    def letters(poison: float) -> int:
        author = Author(1, 1, poison)
        messages = [author.next(with_source=0) for _ in range(500)]
        records = [
            LogRecord(0, offset, 7, message.key, message.value, message.headers)
            for offset, message in enumerate(messages)
        ]
        return len(fold(records).letters)

    assert letters(0) == 0
    assert letters(1) == 500
