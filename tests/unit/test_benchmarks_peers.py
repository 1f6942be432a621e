"""The consumer's peers: rows, locks and the report; no peer is started."""

import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from execution_events import wire
from execution_events.embedded.jars import JarList
from execution_events.embedded.kafka import jar_list
from tests.benchmarks import recurring, reference
from tests.benchmarks.peers import comparison, debezium, peer
from tests.benchmarks.peers.comparison import Found, Sample, Work
from tests.benchmarks.peers.job import FIELDS, Job, row
from tests.foreign import programs
from tests.support import installed


def test_a_row_has_the_columns_of_a_record() -> None:
    occurrence = next(recurring.records(1))
    _, value = wire.encode(occurrence)
    columns = row(msgspec.json.decode(value))
    assert tuple(columns) == tuple(FIELDS) == reference.COLUMNS
    assert columns["name"] == occurrence.name
    assert columns["object_namespace"] == occurrence.object_namespace
    assert columns["count"] == 1


def test_a_job_is_passed_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("127.0.0.1:9092", "topic", "group", "postgresql://owner@127.0.0.1/some", 10)
    for name, value in job.environment().items():
        monkeypatch.setenv(name, value)
    assert Job.load() == job


def test_the_last_record_of_each_partition_is_known() -> None:
    records = list(islice(recurring.records(500), 500))
    work = Work.of(records, 6)
    assert work.counts == recurring.counts(iter(records))
    assert 1 <= len(work.last) <= 6
    last = records[-1]
    identity = last.execution_id, last.namespace, last.name
    assert work.last[identity] == last.last_timestamp


def test_counts_are_compared_where_they_are_kept() -> None:
    expected = Counter({("e", "a"): 3, ("e", "b"): 1})
    found = Counter({("e", "a"): 5})
    assert comparison.difference(expected, found, folds=True) == (1, 2)
    assert comparison.difference(expected, found, folds=False) == (1, 0)


def test_only_the_consumers_wrong_counts_break_a_report() -> None:
    def sample(rate: float, missing: int = 0, surplus: int = 0) -> Sample:
        return Sample(rate, 1.5, 0.1, 0.2, 99.5, missing, surplus)

    found = {
        comparison.OURS: Found("one consumer", "", True, [sample(1000)], [sample(900)]),
        "adds": Found("adds", "10", True, [sample(500)], [sample(400, 0, 7)]),
        "replaces": Found("replaces", "10", False, [sample(250)], [sample(200, 2, 0)]),
    }
    report = comparison.report(found, Counter({("e", "a"): 7, ("e", "b"): 3}), 1, True)
    assert report.broken == []
    found[comparison.OURS].killed[0] = sample(900, 1)
    assert comparison.report(found, Counter({("e", "a"): 7}), 1, True).broken == [
        "one consumer: 1 occurrences missing, 0 too many"
    ]


def test_each_lock_has_its_own_environment() -> None:
    assert installed.directory("name", b"a") != installed.directory("name", b"b")


@pytest.mark.parametrize("lock", [peer.LOCK, programs.LOCK])
def test_a_lock_has_hashes_and_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert not re.search(r"://|index|find-links", text)
    lines = [
        line for line in text.replace("\\\n", " ").splitlines() if line and line[0] not in "# "
    ]
    assert lines
    assert all("==" in line and "--hash=sha256:" in line for line in lines)
    wanted = {
        re.sub(r"\[.*\]", "", line).split("==")[0]
        for line in lock.with_suffix(".in").read_text().splitlines()
    }
    assert wanted <= {line.split("==")[0] for line in lines}


def test_the_connect_schema_matches_a_record(tmp_path: Path) -> None:
    _, value = wire.encode(next(recurring.records(1)))

    def names(schema: dict[str, Any]) -> dict[str, Any]:
        return {
            each["field"]: names(each) if each["type"] == "struct" else None
            for each in schema["fields"]
        }

    def keys(content: dict[str, Any]) -> dict[str, Any]:
        return {
            key: keys(found) if isinstance(found, dict) else None for key, found in content.items()
        }

    assert names(debezium.schema()) == keys(msgspec.json.decode(value))
    job = Job("127.0.0.1:9092", "topic", "group", "postgresql://a:b@127.0.0.1:5432/some", 10)
    found = debezium.connector(job)
    assert found["connection.url"] == "jdbc:postgresql://127.0.0.1:5432/some"
    assert "metadata_name:name" in found["transforms.rename.renames"].split(",")
    assert debezium.worker(job, tmp_path)["bootstrap.servers"] == job.servers
    assert debezium.properties({"a": "b:c", "d": "1"}) == "a=b:c\nd=1\n"


def test_connect_and_the_broker_have_the_same_version() -> None:
    versions = {jar.artifact: jar.version for jar in JarList.load(debezium.JARS).jars}
    broker = {jar.artifact: jar.version for jar in jar_list().jars}
    assert versions["connect-runtime"] == versions["kafka-clients"] == broker["kafka-clients"]
