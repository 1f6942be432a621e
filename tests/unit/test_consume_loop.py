"""The consume loop and a client that fails; the rest is tested against real servers."""

import asyncio
from typing import Any, ClassVar

import pytest
from aiokafka import TopicPartition
from prometheus_client import CollectorRegistry

from execution_events.backoff import backoff
from execution_events.consumer.assignment import Assignment
from execution_events.consumer.fetcher import BatchFetcher
from execution_events.consumer.loop import ConsumeLoop
from execution_events.consumer.seeder import Seeder
from execution_events.errors import RetryableError
from execution_events.metrics import ConsumerMetrics
from execution_events.store.write.batches import BatchWriter
from tests.support.consumers import DEADLINE
from tests.support.records import LogRecord, log, occurrence


class FailingClient:
    """A client without partitions whose every fetch fails."""

    address = "kafka:9092"
    read_bytes = 0
    partition_errors: ClassVar[dict[TopicPartition, object]] = {}

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def getmany(self, **_: object) -> None:
        raise self._error


class PolledClient:
    """A client of one partition with the results of the next polls; those after them are empty."""

    address = "kafka:9092"
    read_bytes = 0
    partition_errors: ClassVar[dict[TopicPartition, object]] = {}

    def __init__(self, polls: list[list[LogRecord]]) -> None:
        self._polls = polls
        self._position = 0
        self.empty = asyncio.Event()

    async def getmany(self, **_: object) -> dict[TopicPartition, list[LogRecord]]:
        if not self._polls:
            self.empty.set()
            return {}
        records = self._polls.pop(0)
        self._position += len(records)
        return {TopicPartition("topic", 0): records} if records else {}

    async def position(self, _: TopicPartition) -> int:
        return self._position


class IdleClient:
    """A client that fetches nothing."""

    address = "kafka:9092"

    def __init__(self) -> None:
        self.ends: dict[TopicPartition, int] = {}

    def last_stable_offset(self, partition: TopicPartition) -> int:
        return self.ends.get(partition, 0)


class IdleSeeder(Seeder):
    """A seeder without partitions."""

    async def advance(self) -> None:
        pass


def loop_over(client: Any) -> ConsumeLoop:
    async def no_log(*_: object) -> None:
        pass

    assignment, stop = Assignment(client), asyncio.Event()
    writer, metrics = BatchWriter("postgresql://", "topic"), ConsumerMetrics(CollectorRegistry())
    return ConsumeLoop(
        client,
        assignment,
        BatchFetcher(client, assignment, 10, stop),
        IdleSeeder(assignment, writer, metrics, no_log, {}),
        writer,
        metrics,
        lambda _: 0,
        stop,
    )


async def test_a_fetch_cancelled_by_the_client_replaces_the_client() -> None:
    """aiokafka cancels fetches after it has left its group; the process must continue."""
    with pytest.raises(RetryableError, match="cancelled"):
        await loop_over(FailingClient(asyncio.CancelledError())).run()


async def test_an_unexpected_error_replaces_the_client() -> None:
    with pytest.raises(RetryableError, match="Kafka at kafka:9092: ValueError"):
        await loop_over(FailingClient(ValueError())).run()


async def test_a_batch_grows_while_another_is_being_stored() -> None:
    partition, records = TopicPartition("topic", 0), log([occurrence()] * 3)
    storing = asyncio.get_running_loop().create_future()
    client: Any = PolledClient([records[:1], [], records[1:2], [], records[2:], []])
    assignment = Assignment(client)
    assignment.positions, assignment.epochs = {partition: 0}, {partition: 0}
    fetcher = BatchFetcher(client, assignment, 10, asyncio.Event())
    fetching = asyncio.create_task(fetcher.fetch(storing=storing))
    async with asyncio.timeout(DEADLINE):
        await client.empty.wait()
        assert not fetching.done()
        storing.set_result(True)
        fetched = await fetching
    assert fetched is not None
    assert [record.offset for record in fetched.batch.records] == [0, 1, 2]


async def test_stalls_are_measured_by_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("execution_events.consumer.loop.time.monotonic", lambda: now)
    client = IdleClient()
    loop = loop_over(client)
    idle, waiting = TopicPartition("topic", 0), TopicPartition("topic", 1)
    loop._assignment.positions = {idle: 0, waiting: 0}
    loop._update_lag()
    now = 1000
    # Without lag, time does not count as a stall.
    assert loop.stalled() == {}
    client.ends[waiting] = 1
    assert loop.stalled() == {1: 0}
    now = 2000
    assert loop.stalled() == {1: 1000}
    loop._assignment.positions[waiting] = 1
    loop._update_lag()
    assert loop.stalled() == {}


async def test_lag_includes_records_that_only_the_probe_has_seen() -> None:
    """The client's own value does not change while the leader is frozen."""
    loop = loop_over(IdleClient())
    loop._end_offset = lambda _: 5
    loop._assignment.positions[TopicPartition("topic", 0)] = 3
    loop._update_lag()
    assert loop._metrics.lag.labels(0)._value.get() == 2


def test_backoff_doubles_up_to_its_limit() -> None:
    waits = [backoff(attempt) for attempt in range(2000)]
    assert all(0 < wait <= 5 for wait in waits)
    assert max(waits[:2]) <= 0.2
    assert min(waits[10:]) >= 2.5
    assert all(0.5 <= backoff(20, first=1, limit=1) <= 1 for _ in range(100))
