"""The benchmarks' own arithmetic, and the events that they publish."""

import json
from collections import Counter

import pytest

from execution_events import wire
from execution_events.publisher import Names
from tests.benchmarks import imports, outage, publish
from tests.benchmarks.figures import Spread, Verdict, percentile, ratio, short
from tests.benchmarks.log import Audit, LogRecord
from tests.benchmarks.outage import AWAY, THERE, Outage
from tests.benchmarks.outage_worker import name_of
from tests.benchmarks.producer import WAYS, Sample
from tests.benchmarks.publish import VARIANTS
from tests.benchmarks.report import Report, heading, machine, table
from tests.benchmarks.workload import EVENTS_OF_AN_EXECUTION, SIDE_BY_SIDE, seed_shaped


def test_a_spread_is_a_median_between_extremes() -> None:
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
    assert Spread.of([1, 2]) == Spread(1.5, 1, 2)


def test_a_ratio_is_of_medians_and_its_extremes_are_of_rounds() -> None:
    assert ratio([10, 30, 20], [10, 10, 40]) == Spread(2, 0.5, 3)
    with pytest.raises(ValueError, match="shorter"):
        ratio([1, 2], [1])


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (100, 100)])
def test_a_percentile_is_one_of_the_figures(percent: float, expected: float) -> None:
    assert percentile(range(100, 0, -1), percent) == expected
    assert percentile([7], percent) == 7


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (0, "0"),
        (7, "7"),
        (0.8123, "0.812"),
        (12.34, "12.3"),
        (123.45, "123.5"),
        (12345.6, "12,346"),
    ],
)
def test_figures_are_short(figure: float, text: str) -> None:
    assert short(figure) == text


def test_a_bar_is_met_from_its_own_side() -> None:
    assert Verdict("ratio", 0.8, 0.8).met
    assert not Verdict("ratio", 0.79, 0.8).met
    assert Verdict("drained", 30, 30, "s", at_most=True).met
    assert not Verdict("drained", 30.1, 30, "s", at_most=True).met
    assert str(Verdict("drained", 31, 30, "s", True)) == "MISSED  drained: 31 s (at most 30)"


def test_a_table_is_aligned_markdown() -> None:
    assert table(("Name", "n"), [("a", "10"), ("long name", "7")]).splitlines() == [
        "| Name      |  n |",
        "|-----------|---:|",
        "| a         | 10 |",
        "| long name |  7 |",
    ]


def test_a_report_is_text_and_json() -> None:
    report = Report(
        "some", {"runs": 1}, ("Name", "n"), [("a", "1")], [Verdict("n", 1, 2)], ["A note."]
    )
    assert report.text().endswith("\n\n- A note.\n\nMISSED  n: 1 (at least 2)")
    content = json.loads(report.json({"cores": 2}))
    assert content["machine"] == {"cores": 2}
    assert content["verdicts"][0]["met"] is False
    assert content["rows"] == [["a", "1"]]


def test_the_machine_is_named() -> None:
    found = machine()
    assert found["cores"] >= 1
    assert f"kafka {found['versions']['kafka']}" in heading(found)


def test_events_are_seed_shaped() -> None:
    events = list(seed_shaped(SIDE_BY_SIDE * EVENTS_OF_AN_EXECUTION + 1))
    executions = Counter(event.execution_id for event in events[:-1])
    assert list(executions.values()) == [EVENTS_OF_AN_EXECUTION] * SIDE_BY_SIDE
    assert len({event.execution_id for event in events[:SIDE_BY_SIDE]}) == SIDE_BY_SIDE
    assert events[-1].execution_id not in executions
    names = Names()
    occurrences = [names.occurrence(event) for event in events]
    assert len({occurrence.name for occurrence in occurrences}) == len(events)
    assert all(450 < len(wire.encode(occurrence)[1]) < 650 for occurrence in occurrences)


def test_publishing_compares_what_was_run_before() -> None:
    known: set[str] = set()
    for variant in VARIANTS:
        assert variant.reference is None or variant.reference in known
        known.add(variant.way)
    assert known == set(WAYS)


def test_the_publish_report() -> None:
    samples = {
        variant.way: [Sample(variant.share(1000) / 10_000, 1.0, 0.02)] * 3 for variant in VARIANTS
    }
    report = publish.report(samples, 1000, 3)
    assert report.rows[0] == (
        *("aiokafka send, 5000 in flight", "10,000", "10,000", "10,000", "", "20.0"),
    )
    assert report.rows[4][4] == "1.00"
    assert [verdict.met for verdict in report.verdicts] == [True, True, True]
    delivered = report.rows[7]
    assert delivered == ("… until Kafka has them", "1,000", "1,000", "1,000", "0.10", "")


def test_the_import_report() -> None:
    report = imports.report({imports.REFERENCE: [0.1, 0.2], imports.OURS: [0.15, 0.3]}, 2)
    assert report.rows[1] == (imports.OURS, "225", "150", "300", "1.50")
    assert not report.verdicts[0].met


def record(sequence: int, name: str, *, partition: int = 0, source: bytes = b"s") -> LogRecord:
    return LogRecord(partition, source, sequence, "execution", name)


def test_an_audit_forgives_copies_alone() -> None:
    again = [record(1, "a"), record(2, "b"), record(1, "a"), record(2, "b"), record(3, "c")]
    assert Audit.of(again) == Audit(5, copies=2, names={"a", "b", "c"})
    swapped = Audit.of([record(2, "a"), record(1, "b")])
    assert (swapped.misplaced, swapped.disordered) == (1, 0)
    swapped = Audit.of([record(1, "b"), record(2, "a")])
    assert (swapped.misplaced, swapped.disordered) == (0, 1)


def test_sequences_are_of_one_source_and_partition() -> None:
    records = [record(2, "a"), record(1, "b", partition=1), record(1, "c", source=b"t")]
    assert Audit.of(records) == Audit(3, names={"a", "b", "c"})


def test_the_outage_report_tells_what_is_missing() -> None:
    there = {name_of(0, 0), name_of(0, 1)}
    calls = {"calls": 2, "p50": 0.5, "p99": 1.25, "max": 2, "late": 3}
    measured = Outage(
        rate=2,
        seconds={THERE: 1, AWAY: 1.02},
        calls={THERE: {"calls": 0}, AWAY: calls},
        memory={"before": 30, "peak": 40, "after": 35},
        peak_spool=2**20,
        drained=1,
        published=[2],
        failures=[],
        left=0,
        audit=Audit(2, names=there),
    )
    report = outage.report(measured)
    assert report.rows == [
        (THERE, "1", "0", "0", "0", "0", "0"),
        (AWAY, "1", "2", "0.5", "1.2", "2", "3"),
    ]
    assert not report.broken
    assert all(verdict.met for verdict in report.verdicts)
    there.remove(name_of(0, 0))
    assert outage.report(measured).broken == ["1 events missing"]
