"""Work and verdicts of the growth benchmark."""

from collections import Counter

import pytest

from tests.benchmarks import consuming, growth_report, load, recurring, requests
from tests.benchmarks.growth_report import LOOPS, VARIANTS, Found, Loops, Mixed
from tests.benchmarks.load import Request

SIZES = [1000, 2000]


def test_a_crash_loop_is_one_event() -> None:
    records = list(Loops(8, 5).records())
    counts = recurring.counts(iter(records))
    assert (len(counts), set(counts.values())) == (8, {5})
    assert len({execution_id for execution_id, _ in counts}) == 8
    one = [each for each in records if each.execution_id == records[0].execution_id]
    moments = [each.last_timestamp for each in one]
    assert moments == sorted(set(moments))
    assert records == list(Loops(8, 5).records())


def test_each_run_of_mixed_work_has_executions_of_its_own() -> None:
    runs = [Mixed(500).records(), Mixed(500, "1 ").records(), Mixed(500, "2 ").records()]
    counts = [recurring.counts(each) for each in runs]
    executions = [{execution_id for execution_id, _ in each} for each in counts]
    assert len(set.union(*executions)) == sum(map(len, executions))
    assert len({each.total() for each in counts}) == len(set(map(len, counts))) == 1
    assert counts[0] == recurring.counts(recurring.records(500))


def test_repeated_requests_have_different_headers() -> None:
    found = requests.uncached([Request("/a"), Request("/b")])
    assert Counter(each.path for each in found)["/a"] == len(found) / 2
    assert len({each.headers["Accept"] for each in found}) == len(found)


def stored(rate: float, *wrong: str) -> consuming.Sample:
    return consuming.Sample(
        rate=rate, total=2, cpu=0.01, postgres_cpu=0.02, peak=60, wrong=list(wrong)
    )


def answered(rate: int, wrong: int = 0) -> load.Sample:
    return load.Sample(
        answers=rate,
        seconds=1,
        p50=0.001,
        p99=0.004,
        server_cpu=0.2,
        postgres_cpu=0.1,
        client_cpu=0.1,
        sent=rate,
        wrong=wrong,
        errors=["another body"] * wrong,
    )


def found(greatest: float, loop: float) -> Found:
    return Found(
        reads={1000: [answered(1000)], 2000: [answered(900)]},
        grown={1000: [stored(5000)], 2000: [stored(greatest)]},
        bare={each.key: [stored(5000)] for each in VARIANTS} | {LOOPS[0].key: [stored(loop)]},
    )


@pytest.mark.parametrize(("greatest", "loop"), [(4000, 5000), (3900, 4900)])
def test_a_report_compares_the_greatest_size_with_the_smallest(greatest: int, loop: int) -> None:
    report = growth_report.report(found(greatest, loop), SIZES, 1000, 500, 1, 3)
    met = greatest == 4000
    assert [(each.bar, each.met) for each in report.verdicts] == [
        (0.8, met),
        (0.8, True),
        (1, met),
    ]
    assert not report.broken


def test_a_wrong_count_and_a_wrong_answer_break_a_report() -> None:
    broken = found(4000, 5000)
    broken.grown[2000] = [stored(4000, "1 occurrences missing, of 1 events")]
    broken.reads[1000] = [answered(1000, wrong=1)]
    report = growth_report.report(broken, SIZES, 1000, 500, 1, 3)
    assert report.broken == [
        "2,000 events stored: 1 occurrences missing, of 1 events",
        "lists, 1,000 events stored: 1 of 1,000 answers wrong: another body",
    ]
