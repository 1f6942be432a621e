"""Verdicts of the memory benchmark."""

from dataclasses import replace

from tests.benchmarks import consuming, load, memory
from tests.benchmarks.dataset import Dataset
from tests.benchmarks.memory import Consumer, Reader, Services
from tests.benchmarks.reading import Streamed

STORED = consuming.Sample(rate=40_000, total=8, cpu=4, postgres_cpu=3, peak=100, wrong=[])
LISTS = load.Sample(
    answers=5000,
    seconds=5,
    p50=0.001,
    p99=0.002,
    server_cpu=4,
    postgres_cpu=1,
    client_cpu=1,
    sent=5500,
    wrong=0,
    errors=[],
)
CONSUMER = Consumer(50, {1000: STORED, 3000: replace(STORED, peak=105)}, {1: 50, 350: 98})
READER = Reader(60, 140, LISTS, Streamed(1.5, 70, 15, True))


def test_the_management_port_is_read_from_the_log() -> None:
    log = '{"event": "a"}\n{"event": "b", "management": "http://127.0.0.1:4711"}\n{"management'
    assert memory.management(log) == 4711
    assert memory.management('{"event": "a"}\n') is None


def test_peaks_are_judged() -> None:
    report = memory.report(Dataset(20, 1000), [Services(CONSUMER, READER)], [], 5)
    assert [(verdict.figure, verdict.met) for verdict in report.verdicts] == [
        (105, True),
        (98, True),
        (1.05, True),
    ]
    assert report.broken == []


def test_memory_that_grows_with_the_backlog_misses_both_bars() -> None:
    grown = replace(CONSUMER, stored={1000: STORED, 3000: replace(STORED, peak=210)})
    ours, other = Services(grown, READER), Services(CONSUMER, READER)
    report = memory.report(Dataset(20, 1000), [ours], [other], 5)
    assert [verdict.met for verdict in report.verdicts[:3]] == [False, True, False]
    assert [verdict.what for verdict in report.verdicts[3:] if not verdict.met] == [
        "consumer, stores 3,000 records, of the other tree (rounds 2.00 to 2.00)"
    ]


def test_wrong_counts_and_answers_break_a_report() -> None:
    stored = {1000: STORED, 3000: replace(STORED, wrong=["1 occurrences missing, of 1 events"])}
    reader = replace(
        READER,
        lists=load.Sample(5000, 5, 0.001, 0.002, 4, 1, 1, 5500, wrong=2, errors=["x"]),
        long=replace(READER.long, same=False),
    )
    found = Services(replace(CONSUMER, stored=stored), reader)
    report = memory.report(Dataset(20, 1000), [found], [], 5)
    assert report.broken == [
        "3,000 records: 1 occurrences missing, of 1 events",
        "reader, lists over 8 connections: 2 of 5,500 answers wrong: x",
        "the long list is wrong",
    ]
