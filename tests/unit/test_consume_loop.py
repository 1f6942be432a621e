"""What the loop makes of a client that fails; all else is tested against the real servers."""

import asyncio

import pytest
from aiokafka import TopicPartition
from prometheus_client import CollectorRegistry

from execution_events.consumer.assignment import Assignment
from execution_events.consumer.fetcher import BatchFetcher, Unreadable
from execution_events.consumer.loop import ConsumeLoop, backoff
from execution_events.errors import RetryableError
from execution_events.management import ConsumerMetrics
from execution_events.store.batches import BatchWriter


class FailingClient:
    """A client without partitions whose fetches fail."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def getmany(self, **_: object) -> None:
        raise self._error


class IdleClient:
    """A client of one partition."""

    end = 0

    def last_stable_offset(self, _: TopicPartition) -> int:
        return self.end


def loop_over(client: object, unreadable: Unreadable) -> ConsumeLoop:
    async def no_log(_: object) -> dict[int, object]:
        return {}

    assignment, stop = Assignment(client), asyncio.Event()  # type: ignore[arg-type]
    return ConsumeLoop(
        client,
        assignment,
        BatchFetcher(client, assignment, unreadable, 10, stop),
        BatchWriter("postgresql://", "topic"),
        ConsumerMetrics(CollectorRegistry()),
        no_log,  # type: ignore[arg-type]
        stop,
    )


async def test_a_fetch_that_the_client_cancels_asks_for_another_client() -> None:
    """aiokafka does so after it has left its group; it must not end the process."""
    with pytest.raises(RetryableError, match="cancelled"):
        await loop_over(FailingClient(asyncio.CancelledError()), Unreadable()).run()


async def test_an_error_that_is_not_kafkas_begins_the_search_for_its_record() -> None:
    unreadable = Unreadable()
    with pytest.raises(RetryableError, match="ValueError"):
        await loop_over(FailingClient(ValueError()), unreadable).run()
    assert unreadable.searching
    unreadable.found(1, 5)
    assert not unreadable.searching
    assert unreadable.offsets == {1: 5}


async def test_time_in_which_nothing_waits_is_no_stall() -> None:
    client = IdleClient()
    loop = loop_over(client, Unreadable())
    partition = TopicPartition("topic", 0)
    loop._assignment.positions[partition] = 0
    loop._last_progress -= 1000
    loop._measure()
    assert loop.stalled() == 0
    loop._last_progress -= 1000
    client.end = 1
    assert loop.stalled() >= 1000


def test_backoff_grows_to_its_bound() -> None:
    waits = [backoff(attempt) for attempt in range(2000)]
    assert all(0 < wait <= 5 for wait in waits)
    assert max(waits[:2]) <= 0.2
    assert min(waits[10:]) >= 2.5
