"""The consumer's reports on its partitions; what they store is tested against PostgreSQL."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition

from execution_events.consumer import reporter as module
from execution_events.consumer.assignment import Assignment
from execution_events.consumer.probe import LogEnd
from execution_events.consumer.reporter import Reporter
from execution_events.errors import HaltError, RetryableError
from execution_events.store.write.reports import PartitionReport, ReportWriter

ZERO, ONE = TopicPartition("topic", 0), TopicPartition("topic", 1)


class Client:
    """A client that seeks and pauses nothing, with the ends that its fetches have found."""

    def __init__(self) -> None:
        self.ends: dict[TopicPartition, tuple[int, int]] = {}

    def seek(self, *_: object) -> None: ...
    def pause(self, *_: object) -> None: ...
    def resume(self, *_: object) -> None: ...

    def last_stable_offset(self, partition: TopicPartition) -> int | None:
        return self.ends.get(partition, (None, None))[0]

    def last_poll_timestamp(self, partition: TopicPartition) -> int | None:
        return self.ends.get(partition, (None, None))[1]


class Reports(ReportWriter):
    """A writer that keeps each report, or raises in its place."""

    def __init__(self, *outcomes: Exception | None) -> None:
        super().__init__("postgresql://", "topic", "consumer")
        self.written: list[Sequence[PartitionReport]] = []
        self.outcomes = list(outcomes)
        self.done = asyncio.Event()

    async def write(self, reports: Sequence[PartitionReport]) -> None:
        self.written.append(reports)
        outcome = self.outcomes.pop(0)
        if not self.outcomes:
            self.done.set()
        if outcome is not None:
            raise outcome


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop both clocks, the monotonic one at 100 s and the other at 1000 s; retry at once."""
    stopped = SimpleNamespace(monotonic=lambda: 100.0, time=lambda: 1000.0)
    monkeypatch.setattr(module, "time", stopped)
    monkeypatch.setattr(module, "_INTERVAL", 0)
    monkeypatch.setattr(module, "backoff", lambda _: 0)


async def reported(
    reports: Reports, client: Client, assignment: Assignment, probed: dict[int, LogEnd]
) -> list[Sequence[PartitionReport]]:
    """Return the reports until the outcomes of `reports` are used up."""
    running = asyncio.create_task(Reporter(reports, probed.get).run(client, assignment))
    try:
        async with asyncio.timeout(30):
            await reports.done.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return reports.written


async def test_the_last_response_tells_the_end_of_a_log(clock: None) -> None:
    client = Client()
    assignment = Assignment(client)
    assignment.on_partitions_assigned({ONE, ZERO})
    client.ends = {ZERO: (7, 998_500), ONE: (8, 990_000)}
    probed = {0: LogEnd(5, 97), 1: LogEnd(9, 98)}
    assert await reported(Reports(None), client, assignment, probed) == [
        [PartitionReport(0, 7, 1.5, None), PartitionReport(1, 9, 2, None)]
    ]


async def test_a_clock_set_back_makes_no_negative_age(clock: None) -> None:
    client = Client()
    assignment = Assignment(client)
    assignment.on_partitions_assigned({ZERO})
    client.ends = {ZERO: (7, 5_000_000)}
    assert await reported(Reports(None), client, assignment, {}) == [
        [PartitionReport(0, 7, 0, None)]
    ]


async def test_a_halted_partition_is_reported_with_its_reason(clock: None) -> None:
    client = Client()
    assignment = Assignment(client)
    assignment.on_partitions_assigned({ZERO, ONE})
    assignment.halt(ONE, "another log")
    assert await reported(Reports(None), client, assignment, {}) == [
        [PartitionReport(0, None, None, None), PartitionReport(1, None, None, "another log")]
    ]


async def test_a_failed_report_is_logged_and_tried_again(
    clock: None, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client()
    assignment = Assignment(client)
    assignment.on_partitions_assigned({ZERO})
    outcomes = (RetryableError("no answer"), HaltError("no table"), None)
    written = await reported(Reports(*outcomes), client, assignment, {})
    assert len(written) == 3
    assert [record.getMessage().split()[0] for record in caplog.records].count("report_failed") == 2


async def test_revoked_partitions_are_not_reported(clock: None) -> None:
    client = Client()
    assignment = Assignment(client)
    assignment.on_partitions_assigned({ZERO})
    assignment.on_partitions_revoked({ZERO})
    reports = Reports(None)
    running = asyncio.create_task(Reporter(reports, lambda _: None).run(client, assignment))
    for _ in range(10):
        await asyncio.sleep(0)
    assert reports.written == []
    assignment.on_partitions_assigned({ONE})
    async with asyncio.timeout(30):
        await reports.done.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [report.partition for report in reports.written[0]] == [1]
