"""Every benchmark completes and counts correctly, with sizes too small for its times to count."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import growth_report, publish, read, trees
from tests.benchmarks.trees import THIS
from tests.support.questions import QUESTIONS


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    file = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *arguments, "--json", file],
        cwd=THIS.root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(file.read_text())
    assert all(row[0] in done.stdout for row in report["rows"])
    assert report["machine"]["versions"]["kafka"]
    return report


@pytest.mark.more
def test_publish(tmp_path: Path) -> None:
    report = run(
        *(tmp_path, "publish", "--events", "200", "--runs", "1"),
        *("--reference-tree", str(THIS.root)),
    )
    variants = publish.variants(THIS)
    assert set(report["figures"]) == {variant.key for variant in variants}
    assert len(report["rows"]) == len(variants) + 2
    assert len(report["verdicts"]) == 3 + sum(variant.other_tree for variant in variants)


@pytest.mark.more
def test_outage(tmp_path: Path) -> None:
    report = run(tmp_path, "outage", "--seconds", "2", "--rate", "50")
    figures = report["figures"]
    assert figures["audit"]["names"] == sum(figures["published"]) > 100
    assert figures["peak_spool"] > 0


def test_import(tmp_path: Path) -> None:
    report = run(tmp_path, "import", "--runs", "1")
    assert [len(found) for found in report["figures"]["seconds"].values()] == [1, 1]


@pytest.mark.more
def test_read(tmp_path: Path) -> None:
    report = run(
        *(tmp_path, "read", "--seconds", "0.1", "--runs", "1"),
        *("--executions", "12", "--long", "1000", "--reference-tree", str(THIS.root)),
    )
    samples = report["figures"]["samples"]
    assert set(samples) == {case.key for case in read.cases(THIS)}
    assert all(sample["answers"] for case in samples.values() for [sample] in case.values())
    ours, other = (report["figures"]["further"][each] for each in (read.READER, read.OTHER_READER))
    assert [each["same"] for [each] in ours["streams"].values()] == [True] * 2
    assert all(each["contentions"][0]["sample"]["answers"] for each in (ours, other))
    assert sum("of the other tree" in each["what"] for each in report["verdicts"]) == 22


def test_ingest(tmp_path: Path) -> None:
    report = run(
        *(tmp_path, "ingest", "--events", "5000", "--runs", "1"), "--reference-tree", str(THIS.root)
    )
    assert set(report["figures"]) == {
        *("postgresql", "one", "two", "other"),
        *("loops", "other-loops", "wide", "spread"),
    }
    assert all(sample["rate"] for [sample] in report["figures"].values())
    assert len(report["verdicts"]) == 6


def test_watch(tmp_path: Path) -> None:
    report = run(
        *(tmp_path, "watch", "--watchers", "20", "--executions", "4"),
        *("--rate", "40", "--seconds", "2"),
    )
    assert set(report["figures"]["percentiles"]) == {"", "type=Warning", "elemId=job-1-init"}
    assert report["rows"][1][1] == "240"
    assert report["figures"]["measured"]["rate"] > 1


@pytest.mark.more
def test_latency(tmp_path: Path) -> None:
    report = run(
        *(tmp_path, "latency", "--rates", "10,1000", "--samples", "20"),
        *("--reference-tree", str(THIS.root)),
    )
    assert [row[:3] for row in report["rows"] if row[0] != trees.OTHER_TITLE] == [
        ["10", "HTTP", "20"],
        ["10", "watch", "20"],
        ["1,000", "HTTP", "200"],
        ["1,000", "watch", "2,000"],
    ]
    assert len(report["rows"]) == 8
    assert len(report["verdicts"]) == 4 + 8
    assert all(each["requests"] > 20 for [each] in report["figures"].values())


@pytest.mark.more
def test_handover(tmp_path: Path) -> None:
    report = run(tmp_path, "handover", "--runs", "1", "--rate", "200")
    killed, stopped = report["figures"]["samples"]
    assert (killed["signal"], stopped["signal"]) == ("SIGKILL", "SIGTERM")
    assert killed["moved"] > 1
    assert all(each["exited"] > 0 and len(each["partitions"]) == 3 for each in (killed, stopped))
    assert all(0 < each["assigned"] <= each["moved"] for each in (killed, stopped))
    assert report["figures"]["published"] > 1000
    assert len(report["verdicts"]) == 2


@pytest.mark.more
def test_memory(tmp_path: Path) -> None:
    report = run(
        *(tmp_path, "memory", "--events", "2000", "--seconds", "0.1"),
        *("--executions", "12", "--long", "1000", "--reference-tree", str(THIS.root)),
    )
    [consumer, reader] = report["figures"]["ours"][0]
    assert set(consumer["stored"]) == {"2000", "6000"}
    assert all(each["peak"] > consumer["idle"] > 10 for each in consumer["stored"].values())
    assert reader["peak"] >= reader["idle"] > 10
    assert reader["lists"]["answers"] > 0
    assert reader["long"]["same"]
    assert all(peak > consumer["idle"] / 2 for peak in consumer["hostile"].values())
    # Hostile records are compared as well, as the other tree is this one.
    assert len(report["rows"]) == 2 * 8
    assert len(report["verdicts"]) == 3 + 8


@pytest.mark.more
def test_questions(tmp_path: Path) -> None:
    report = run(
        *(tmp_path, "questions", "--events", "14000", "--tenants", "3", "--failures", "2"),
        *("--runs", "1"),
    )
    [answers] = report["figures"].values()
    assert answers.keys() == QUESTIONS.keys()
    assert len(report["verdicts"]) == len(QUESTIONS)


@pytest.mark.more
def test_executions(tmp_path: Path) -> None:
    report = run(
        *(tmp_path, "executions", "--executions", "3000", "--depth", "300", "--failures", "2,0.1"),
        *("--seconds", "0.1", "--runs", "1"),
    )
    assert len(report["figures"]) == 2
    assert len(report["rows"]) == 2 * (1 + 12)
    assert len(report["verdicts"]) == 2 * 12


def test_growth(tmp_path: Path) -> None:
    report = run(
        *(tmp_path, "growth", "--events", "2000", "--sizes", "0.001,0.003", "--loop", "500"),
        *("--runs", "1", "--seconds", "0.1"),
    )
    figures = report["figures"]
    assert set(figures["grown"]) == set(figures["reads"]) == {"980", "2940"}
    assert set(figures["bare"]) == {variant.key for variant in growth_report.VARIANTS}
    assert len(report["rows"]) == 2 + len(growth_report.VARIANTS) + 2
    assert len(report["verdicts"]) == 3
