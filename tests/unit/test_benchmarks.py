"""Arithmetic and verdicts of the benchmarks, and the events that they publish."""

import gzip
import json
import math
import os
from collections import Counter
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from execution_events import wire
from execution_events.events import Occurrence
from execution_events.publisher.event import occurrence_of
from tests.benchmarks import (
    consuming,
    dataset,
    imports,
    ingest,
    load,
    outage,
    publish,
    read,
    recurring,
    reference,
    servers,
    targets,
    trees,
    upsert,
    usage,
)
from tests.benchmarks.consuming import Moment
from tests.benchmarks.contention import Contention
from tests.benchmarks.dataset import Dataset
from tests.benchmarks.figures import Spread, Verdict, percentile, ratio
from tests.benchmarks.load import Answer, Checks, Request
from tests.benchmarks.log import Audit, LogRecord
from tests.benchmarks.outage import DOWN, UP, Outage
from tests.benchmarks.outage_worker import name_of
from tests.benchmarks.producer import WAYS, Sample
from tests.benchmarks.publish import VARIANTS
from tests.benchmarks.reading import Streamed
from tests.benchmarks.report import Report
from tests.benchmarks.workload import (
    CONCURRENT,
    EVENTS_OF_AN_EXECUTION,
    occurrence,
    seed_shaped,
)
from tests.support.seed import SEED_BODY


def test_a_spread_is_the_median_minimum_and_maximum() -> None:
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
    assert Spread.of([1, 2]) == Spread(1.5, 1, 2)


def test_a_ratio_is_the_median_of_the_rounds_with_their_extremes() -> None:
    assert ratio([10, 30, 20], [10, 10, 40]) == Spread(1, 0.5, 3)
    assert ratio([1], [0]) == Spread(math.inf, math.inf, math.inf)
    with pytest.raises(ValueError, match="shorter"):
        ratio([1, 2], [1])


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (100, 100)])
def test_a_percentile_is_one_of_the_figures(percent: float, expected: float) -> None:
    assert percentile(range(100, 0, -1), percent) == expected
    assert percentile([7], percent) == 7


def test_a_bar_is_met_from_its_own_side() -> None:
    assert Verdict("ratio", 0.8, 0.8).met
    assert not Verdict("ratio", 0.79, 0.8).met
    assert Verdict("drained", 30, 30, "s", at_most=True).met
    assert not Verdict("drained", 30.1, 30, "s", at_most=True).met
    assert str(Verdict("drained", 31, 30, "s", True)) == "MISSED  drained: 31 s (at most 30)"


def test_a_report_states_missed_bars_and_wrong_results() -> None:
    report = Report("some", {}, ("Name", "n"), [("a", "1")], [Verdict("n", 1, 2)])
    assert report.text().endswith("MISSED  n: 1 (at least 2)")
    assert json.loads(report.json({}))["verdicts"][0]["met"] is False
    wrong = Report("some", {}, ("Name", "n"), [("a", "1")], broken=["One is missing."])
    assert wrong.text().endswith("WRONG   One is missing.")


def test_events_are_seed_shaped() -> None:
    events = list(seed_shaped(CONCURRENT * EVENTS_OF_AN_EXECUTION + 1))
    executions = Counter(event.execution_id for event in events[:-1])
    assert list(executions.values()) == [EVENTS_OF_AN_EXECUTION] * CONCURRENT
    assert len({event.execution_id for event in events[:CONCURRENT]}) == CONCURRENT
    assert events[-1].execution_id not in executions
    occurrences = [occurrence_of(event) for event in events]
    assert len({occurrence.name for occurrence in occurrences}) == len(events)
    assert all(450 < len(wire.encode(occurrence)[1]) < 650 for occurrence in occurrences)


def test_publishing_references_are_measured_first() -> None:
    known: set[str] = set()
    for variant in VARIANTS:
        assert variant.reference is None or variant.reference in known
        known.add(variant.way)
    assert known == set(WAYS)


def test_publishing_is_judged_by_its_reference() -> None:
    samples = {
        variant.way: [Sample(variant.share(1000) / 10_000, 1.0, 0.02)] * 3 for variant in VARIANTS
    }
    report = publish.report(VARIANTS, samples, 1000, 3)
    assert [verdict.met for verdict in report.verdicts] == [True, True, True]


def test_publishing_is_judged_by_the_other_tree() -> None:
    turns = publish.variants(trees.THIS)
    samples = {
        variant.key: [Sample(variant.share(1000) / rate, 1.0, 0.02) for rate in (9000, 10_000)]
        for variant in turns
    }
    slow = [Sample(0.11, 1.0, 0.02), Sample(0.12, 1.0, 0.02)]
    report = publish.report(turns, samples | {"publisher-64": slow}, 1000, 2)
    compared = report.verdicts[3:]
    assert [verdict.what.partition(" (")[0] for verdict in compared] == [
        f"{variant.title}, of the other tree" for variant in VARIANTS if variant.ours
    ]
    assert [verdict.met for verdict in compared] == [True, False, True, True, True, True]
    assert compared[1].what.endswith("(rounds 0.83 to 1.01)")
    titles = [row[0] for row in report.rows]
    assert titles[titles.index("Publisher, 64 tasks") + 1] == trees.OTHER_TITLE


def test_variants_of_both_trees_are_neighbours() -> None:
    assert publish.variants(None) == list(VARIANTS)
    assert read.cases(None) == list(read.CASES)
    turns = [each.key for each in publish.variants(trees.THIS)]
    assert turns[turns.index("spool-64") + 1] == "spool-64-other-tree"
    cases = [each.key for each in read.cases(trees.THIS)]
    assert cases[cases.index("hot") + 1] == "hot-other-tree"
    assert "naive-other-tree" not in cases


def test_a_tree_has_a_virtual_environment(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a checkout"):
        trees.Tree.at(tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert trees.Tree.at(tmp_path).command == (str(python), "-m", "execution_events.cli")


def test_an_import_is_judged_by_its_reference() -> None:
    report = imports.report({imports.REFERENCE: [0.1, 0.2], imports.OURS: [0.15, 0.3]}, 2)
    assert not report.verdicts[0].met


def record(sequence: int, name: str, *, partition: int = 0, source: bytes = b"s") -> LogRecord:
    return LogRecord(partition, source, sequence, "execution", name)


def test_an_audit_accepts_copies_but_no_disorder() -> None:
    again = [record(1, "a"), record(2, "b"), record(1, "a"), record(2, "b"), record(3, "c")]
    assert Audit.of(again) == Audit(5, copies=2, names={"a", "b", "c"})
    swapped = Audit.of([record(2, "a"), record(1, "b")])
    assert (swapped.misplaced, swapped.disordered) == (1, 0)
    swapped = Audit.of([record(1, "b"), record(2, "a")])
    assert (swapped.misplaced, swapped.disordered) == (0, 1)


def test_sequences_are_of_one_source_and_partition() -> None:
    records = [record(2, "a"), record(1, "b", partition=1), record(1, "c", source=b"t")]
    assert Audit.of(records) == Audit(3, names={"a", "b", "c"})


def test_an_event_lost_in_an_outage_is_missing() -> None:
    names = {name_of(0, 0), name_of(0, 1)}
    calls = {"calls": 2, "p50": 0.5, "p99": 1.25, "max": 2, "late": 3}
    measured = Outage(
        rate=2,
        seconds={UP: 1, DOWN: 1.02},
        calls={UP: {"calls": 0}, DOWN: calls},
        memory={"before": 30, "peak": 40, "after": 35},
        peak_spool=2**20,
        drained=1,
        published=[2],
        failures=[],
        left=0,
        audit=Audit(2, names=names),
    )
    report = outage.report(measured)
    assert not report.broken
    assert all(verdict.met for verdict in report.verdicts)
    names.remove(name_of(0, 0))
    assert outage.report(measured).broken == ["1 events missing"]


def test_a_process_has_cpu_time_and_memory() -> None:
    assert 0 < usage.cpu(os.getpid()) <= usage.cpu_of_tree(os.getpid())
    assert 1 < usage.memory(os.getpid()) <= usage.memory(os.getpid(), "VmHWM")


def test_an_address_is_read_from_whole_lines_of_a_log() -> None:
    text = 'no JSON\n{"event": "other"}\n{"address": "http://a:1"}\n{"address": "http://b'
    assert servers.addresses(text) == ["http://a:1"]


def answered(*pieces: bytes, keep: bool = True) -> Answer:
    answer = Answer(keep)
    assert [answer.add(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    return answer


def test_an_answer_may_arrive_in_any_pieces() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nETag: x\r\n\r\nbody"
    for cut in range(1, len(whole)):
        answer = answered(whole[:cut], whole[cut:])
        assert (answer.begin, answer.whole, answer.length) == (b"body", b"body", 4)
    assert answered(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n").length == 0
    assert answered(whole, keep=False).whole is None
    with pytest.raises(ValueError, match="more bytes"):
        Answer(keep=False).add(whole + b"!")
    with pytest.raises(ValueError, match="without Content-Length"):
        Answer(keep=False).add(b"HTTP/1.1 200 OK\r\n\r\n")


def test_answers_are_compared_with_the_expected_ones() -> None:
    def response(body: bytes, status: int = 200, more: bytes = b"") -> Answer:
        return answered(
            b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n" % (status, len(body), more) + body
        )

    digest = sha256(b"body").hexdigest()
    checks = Checks(
        [Request("/a", length=4, begin="bo", sha256=digest), Request("/b", sha256=digest)]
    )
    assert checks.problem(0, response(b"body")) is None
    assert checks.problem(0, response(b"bodies")) == "/a: 6 bytes, not 4"
    assert checks.problem(0, response(b"nobo")) == "/a: the body begins differently"
    assert checks.problem(0, response(b"bogy")) == "/a: the body differs"
    assert checks.problem(0, response(b"body", 503)) == "/a: status 503, not 200"
    packed = gzip.compress(b"body")
    encoding = b"Content-Encoding: gzip\r\n"
    assert checks.problem(1, response(packed, more=encoding)) is None
    assert checks.problem(1, response(packed + b"!", more=encoding)) is not None


def test_a_request_has_its_host_first() -> None:
    head = Request("/a?b=c", headers={"Accept": "x"}).head("host:1")
    assert head == b"GET /a?b=c HTTP/1.1\r\nHost: host:1\r\nAccept: x\r\n\r\n"


def test_bodies_have_the_format_of_the_api() -> None:
    events = [wire.decode(None, value, 0) for value in seed_values()]
    assert dataset.body(events).decode() == SEED_BODY
    assert reference.body(map(msgspec.structs.asdict, events)).decode() == SEED_BODY


def seed_values() -> list[bytes]:
    return [
        json.dumps({"executionId": "e"} | event, ensure_ascii=False).encode()
        for event in json.loads(SEED_BODY)
    ]


def test_a_dataset_is_in_the_order_of_lists() -> None:
    data = Dataset(executions=65, long=200)
    found: dict[str, list[Occurrence]] = {}
    for each in data.occurrences():
        found.setdefault(each.execution_id, []).append(each)
    assert list(found.values()) == [data.listed(number) for number in range(66)]
    assert sum(map(len, found.values())) == data.events
    for events in found.values():
        keys = [(each.first_timestamp, each.name) for each in events]
        assert keys == sorted(set(keys))
    assert len(found) == len({dataset.body(events) for events in found.values()})
    assert 70_000 < len(dataset.body(data.listed(0))) < 75_000


def test_records_recur_at_the_stated_rate() -> None:
    records = list(recurring.records(64 * 300))
    assert records == list(recurring.records(64 * 300))
    counts = recurring.counts(iter(records))
    assert 0.28 < 1 - len(counts) / len(records) < 0.32
    sizes = Counter(execution_id for execution_id, _ in counts)
    assert max(sizes.values()) == EVENTS_OF_AN_EXECUTION
    times: dict[str, list[datetime]] = {}
    for each in records:
        times.setdefault(each.execution_id, []).append(each.last_timestamp)
    assert all(each == sorted(each) for each in times.values())


def test_differing_counts_are_described() -> None:
    expected = Counter({("e", "a"): 2, ("e", "b"): 1})
    assert recurring.difference(expected, Counter(expected)) == []
    assert recurring.difference(expected, Counter({("e", "a"): 1, ("e", "c"): 3})) == [
        "2 occurrences missing, of 2 events",
        "3 occurrences too many, of 1 events",
    ]


def test_batches_are_folded_by_event() -> None:
    first, second = occurrence("b", 0), occurrence("a", 1)
    again = msgspec.structs.replace(first, last_timestamp=second.last_timestamp, message="new")
    once, twice = upsert.folded([first, second, again])
    assert once == second
    assert (twice.count, twice.message, twice.first_timestamp, twice.last_timestamp) == (
        *(2, "new", first.first_timestamp, second.last_timestamp),
    )


def test_batches_are_encoded_in_the_binary_copy_format() -> None:
    event = occurrence("execution", 0)
    content = upsert.encoded([event])
    assert content.startswith(b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"\0\x0e" + b"\0\0\0\x09execution")
    assert content.endswith(b"create" + b"\xff\xff")
    assert b"\0\0\0\x08" + (1).to_bytes(8, "big") in content


def test_the_rate_leaves_out_the_start() -> None:
    assert consuming.rate([Moment(10, 100), Moment(11, 300), Moment(12, 500)]) == 200
    assert consuming.rate([Moment(10, 100)]) == 5000


def test_rates_are_judged_and_wrong_counts_break_a_report() -> None:
    def sample(rate: float, wrong: list[str]) -> consuming.Sample:
        return consuming.Sample(rate, 1.5, 0.1, 0.2, 100 if rate < 1000 else 0, wrong)

    variants = [ingest.ALONE, ingest.ONE, ingest.TWO, ingest.OTHER]
    rates = {"postgresql": 1000, "one": 650, "two": 600, "other": 700}
    samples = {key: [sample(rate, [])] * 2 for key, rate in rates.items()}
    counts = Counter({("e", "a"): 7, ("e", "b"): 3})
    report = ingest.report(variants, samples, counts, 2)
    assert [verdict.met for verdict in report.verdicts] == [True, False, True, True]
    samples["two"] = [sample(600, []), sample(600, ["1 occurrences missing"])]
    assert ingest.report(variants[:3], samples, counts, 2).broken == [
        "two consumers: 1 occurrences missing"
    ]


def test_reads_are_judged_and_wrong_answers_break_a_report() -> None:
    def sample(rate: int, wrong: int = 0) -> load.Sample:
        return load.Sample(rate, 1, 0.001, 0.002, 0.5, 0.25, 0.1, rate, wrong, ["x"] * wrong)

    rates = {"static": 1000, "naive": 100, "uncached": 250, "hot": 400, "unchanged": 500}
    samples = {
        case.key: {targets.FEW: [sample(rates.get(case.key, 200))], targets.MANY: [sample(200)]}
        for case in read.CASES
    }
    samples["hot"][targets.MANY] = [sample(90)]
    streams = {"at once": [Streamed(1, 50, 21, True)], "slowly": [Streamed(1, 50, 0, False)]}
    report = read.report(
        read.CASES,
        Dataset(10, 1000),
        samples,
        read.Memory(60, 70),
        {read.READER: read.Further([Contention(sample(100, 1), 1000, False)], streams)},
        rounds=1,
        seconds=1,
    )
    assert [verdict.met for verdict in report.verdicts] == [
        *(True, False, True, True, True, True, False, True, False),
    ]
    assert report.broken == [
        "during consumption: 1 of 100 answers wrong: x",
        "the long list, read slowly, is wrong",
    ]


def test_reads_are_judged_by_the_other_tree() -> None:
    def sample(rate: int) -> load.Sample:
        return load.Sample(rate, 1, 0.001, 0.002, 0.5, 0.25, 0.1, rate, 0, [])

    cases = read.cases(trees.THIS)
    samples = {
        case.key: {targets.FEW: [sample(200)] * 2, targets.MANY: [sample(100)] * 2}
        for case in cases
    }
    samples["hot-other-tree"][targets.MANY] = [sample(125), sample(100)]
    report = read.report(
        cases,
        Dataset(10, 1000),
        samples,
        read.Memory(60, 70),
        {
            server: read.Further(
                [Contention(sample(100), 1000, True)] * 2,
                {"at once": [Streamed(seconds, 50, 5, True)] * 2},
            )
            for server, seconds in ((read.READER, 2), (read.OTHER_READER, 1))
        },
        rounds=2,
        seconds=1,
    )
    compared = [each for each in report.verdicts if "of the other tree" in each.what]
    assert len(compared) == 2 * sum(case.server == read.READER for case in cases) + 2
    assert [each.what for each in compared if not each.met] == [
        "lists of the same 8 executions, 64 connections, of the other tree (rounds 0.80 to 1.00)",
        "rate of the long list read at once, of the other tree (rounds 0.50 to 0.50)",
    ]
