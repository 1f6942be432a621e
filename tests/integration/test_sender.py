"""The sender: order, replacement of the producer, refusals."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    InvalidTimestampError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownError,
)

from execution_events.clock import now_ms
from execution_events.embedded import EmbeddedKafka
from execution_events.errors import EventError, RetryableError
from execution_events.kafka.producer import Producer
from execution_events.publisher import Publisher
from execution_events.publisher.delivery import sender
from execution_events.publisher.delivery.sender import Sender
from execution_events.publisher.record import HOLD_MS, PendingRecord
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, consuming, until_stored
from tests.support.logs import logged
from tests.support.occurrences import Fetch
from tests.support.published import (
    counted,
    events,
    freeze,
    grow,
    log,
    nothing_left,
    records,
    silent,
    topic_on,
)
from tests.support.topics import make_topic

SOURCE = "urn:test"


class Sent(Sender):
    """A sender that records the outcome of each record."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            settings.kafka,
            SOURCE,
            acknowledged=self._on_acknowledged,
            refused=self._on_refused,
            expired=self._on_expired,
        )
        self.last = 0
        self.settled: list[int] = []
        self.refusals: list[int] = []
        self.expirations: list[int] = []
        self._progress = asyncio.Event()

    def put(self, count: int, partitions: Sequence[int] = (0, 1, 2)) -> None:
        for number, record in enumerate(records(events(count)), self.last + 1):
            record.sequence, record.partition = number, partitions[number % len(partitions)]
            record.attempted_at = record.created_at
            self.submit(record)
        self.last += count

    async def until_settled(self) -> None:
        async with asyncio.timeout(DEADLINE):
            while self.pending:
                await self._progress.wait()
                self._progress.clear()

    def _on_acknowledged(self, records: Sequence[PendingRecord], partition: int, base: int) -> None:
        self.settled += [record.sequence for record in records]
        self._progress.set()

    def _on_refused(self, record: PendingRecord, detail: str) -> None:
        self.refusals.append(record.sequence)
        self._progress.set()

    def _on_expired(self, record: PendingRecord) -> None:
        self.expirations.append(record.sequence)
        self._progress.set()


@asynccontextmanager
async def sending(settings: Settings) -> AsyncIterator[Sent]:
    opened = Sent(settings)
    async with nothing_left():
        try:
            yield opened
        finally:
            await opened.close()


@pytest.fixture
def one_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that no partition has two batches in flight."""
    send = Sender.send
    in_flight: set[tuple[int, int]] = set()

    async def checked(self: Sender, records: Any, partition: int, limit: int) -> Any:
        batch = (id(self), partition)
        assert batch not in in_flight
        in_flight.add(batch)
        try:
            return await send(self, records, partition, limit)
        finally:
            in_flight.remove(batch)

    monkeypatch.setattr(Sender, "send", checked)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of records in each batch sent."""
    sizes = []
    send_batch = Producer.send_batch

    async def counting(self: Producer, batch: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(batch.record_count())
        return await send_batch(self, batch, *arguments, **options)

    monkeypatch.setattr(Producer, "send_batch", counting)
    return sizes


@pytest.mark.usefixtures("one_in_flight")
async def test_order_is_kept_when_the_producer_is_replaced(settings: Settings) -> None:
    rng = random.Random(1)
    async with sending(settings) as sent:
        for _ in range(30):
            sent.put(100)
            await asyncio.sleep(rng.uniform(0, 0.01))
            if (producer := sent._connection._producer) is not None:
                await sent._connection.replace(producer, RuntimeError("dropped by the test"))
        await sent.until_settled()
    assert sorted(sent.settled) == list(range(1, 3001))
    found = counted(await log(settings))
    assert sorted(record.sequence for record in found) == list(range(1, 3001))


@pytest.mark.usefixtures("one_in_flight")
async def test_an_unanswered_batch_is_sent_again_before_later_ones(
    own_kafka: EmbeddedKafka, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_DELIVERY_TIMEOUT", 0.5)
    settings = await topic_on(own_kafka, settings)
    async with sending(settings) as sent:
        sent.put(300)
        await sent.until_settled()
        first = sent._connection._producer
        with silent(own_kafka):
            sent.put(300)
            async with asyncio.timeout(DEADLINE):
                while sent._connection._producer is first:
                    await asyncio.sleep(0.01)
            sent.put(300)
        await sent.until_settled()
    assert sorted(sent.settled) == list(range(1, 901))
    assert len(counted(await log(settings))) == 900


async def test_a_fatal_idempotence_error_loses_and_duplicates_nothing(
    settings: Settings, fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    published = events(600)
    async with consuming(settings):
        async with Publisher(settings) as publisher:
            await asyncio.gather(*map(publisher.publish, published[:300]))
            producer = publisher._delivery._sender._connection._producer  # type: ignore[union-attr]
            assert producer is not None
            for partition in range(3):
                # The broker refuses the next batch.
                producer._txn_manager.increment_sequence_number(
                    TopicPartition(settings.kafka.topic, partition), 1000
                )
            await asyncio.gather(*map(publisher.publish, published[300:]))
            assert publisher._delivery._sender._connection._producer is not producer  # type: ignore[union-attr]
        await until_stored(settings)
    [replaced] = logged(caplog, "producer_replaced")
    assert "OutOfOrderSequence" in replaced["error"]
    rows = await fetch("SELECT name, count FROM event")
    assert {row["name"]: row["count"] for row in rows} == {e.name: e.count for e in published}
    assert len(counted(await log(settings))) == 600


@pytest.fixture
async def narrow(settings: Settings) -> Settings:
    """The settings for a topic with a batch limit of 11,000 bytes."""
    settings = configured(settings, topic=f"{settings.kafka.topic}-narrow")
    await make_topic(settings, 1, {"max.message.bytes": "11000"})
    return settings


def incompressible() -> str:
    return "".join(
        random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+-", k=16000)
    )


@pytest.mark.parametrize("index", [0, 1, 63, 100, 127])
async def test_a_refused_record_delays_no_other(
    narrow: Settings, batches: list[int], index: int
) -> None:
    published = events(128)
    published[index] = msgspec.structs.replace(published[index], message=incompressible())
    async with Publisher(narrow) as publisher:
        results = await asyncio.gather(*map(publisher.publish, published), return_exceptions=True)
    [refused] = [result for result in results if result is not None]
    assert refused is results[index]
    assert isinstance(refused, EventError)
    assert str(refused) == "Kafka refuses the record: MessageSizeTooLargeError"
    found = counted(await log(narrow))
    assert {r.name for r in found} == {e.name for e in published} - {published[index].name}
    # All, seven halvings of 128 records, the single record once more, and the following ones.
    assert len(batches) <= 1 + 7 + 1 + 1


@pytest.mark.parametrize("error", [CorruptRecordException(), MessageSizeTooLargeError()])
async def test_a_single_refusal_is_not_final(settings: Settings, error: Exception) -> None:
    async with sending(settings) as sent:
        send, errors = sent.send, [error]

        async def damaged_once(*arguments: Any) -> Any:
            return (1, -1, errors.pop()) if errors else await send(*arguments)

        sent.send = damaged_once  # type: ignore[method-assign, assignment]
        sent.put(1)
        await sent.until_settled()
    assert (sent.settled, sent.refusals) == ([1], [])


REFUSALS = [
    InvalidTimestampError("out of range"),
    TopicAuthorizationFailedError("events"),
    CorruptRecordException(),
    UnknownError(),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
async def test_a_refusal_by_the_environment_blocks_its_partition_alone(
    settings: Settings, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with sending(settings) as sent:
        send, refuses = sent.send, True

        async def refused(records: Any, partition: int, limit: int) -> Any:
            if partition == 1 and refuses:
                return 1, -1, error
            return await send(records, partition, limit)

        sent.send = refused  # type: ignore[method-assign]
        sent.put(300)
        async with asyncio.timeout(DEADLINE):
            while sent.pending > 100 or not sent.errors:
                await asyncio.sleep(0.01)
        assert sent.refusals == []
        assert sent.errors.keys() == {1}
        assert type(error).__name__ in sent.errors[1] or "grant Write" in sent.errors[1]
        refuses = False
        await sent.until_settled()
        assert sent.errors == {}
    assert sorted(sent.settled) == list(range(1, 301))
    assert [fields["partitions"] for fields in logged(caplog, "partitions_blocked")] == [[1]]


async def test_a_record_attempted_too_long_ago_is_not_sent(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds while it is pending in a running process."""
    async with sending(settings) as sent:
        send, unavailable = sent.send, True

        async def attempt(records: Any, partition: int, limit: int) -> Any:
            if unavailable:
                return 1, -1, RetryableError("unavailable")
            return await send(records, partition, limit)

        sent.send = attempt  # type: ignore[method-assign]
        sent.put(30)
        now = now_ms()
        await asyncio.sleep(0)
        monkeypatch.setattr(sender, "now_ms", lambda: now + HOLD_MS + 1000)
        await sent.until_settled()
        unavailable = False
        monkeypatch.undo()
        sent.put(30)
        await sent.until_settled()
    assert sorted(sent.expirations) == list(range(1, 31))
    assert sorted(sent.settled) == list(range(31, 61))
    assert len(await log(settings)) == 30


async def test_a_missing_partition_is_waited_for(settings: Settings) -> None:
    async with sending(settings) as sent:
        sent.put(10, partitions=[4])
        sent.put(10, partitions=[0])
        async with asyncio.timeout(DEADLINE):
            while sent.pending > 10:
                await asyncio.sleep(0.01)
        assert sorted(sent.settled) == list(range(11, 21))
        await grow(settings, 5)
        await sent.until_settled()
        assert sent.partitions == 5
    assert Counter(record.partition for record in await log(settings)) == {0: 10, 4: 10}


def failing(times: int, error: Exception, function: Callable[..., Any]) -> Callable[..., Any]:
    errors = [error] * times

    def call(*arguments: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("broken", [(Producer, "create_batch"), (Producer, "start")])
async def test_a_fault_of_the_library_stops_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, broken: tuple[Any, str]
) -> None:
    owner, name = broken
    monkeypatch.setattr(owner, name, failing(2, ValueError(name), getattr(owner, name)))
    async with sending(settings) as sent:
        sent.put(100)
        await sent.until_settled()
    assert sorted(sent.settled) == list(range(1, 101))


async def test_a_fault_of_the_sender_stops_no_partition(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Sender, "send", failing(1, ValueError("fault"), Sender.send))
    async with sending(settings) as sent:
        sent.put(100)
        await sent.until_settled()
    assert sorted(sent.settled) == list(range(1, 101))
    assert logged(caplog, "task_restarted")


async def test_cancelling_all_tasks_loses_nothing(settings: Settings) -> None:
    before = asyncio.all_tasks()
    async with sending(settings) as sent:
        sent.put(3)
        await sent.until_settled()
        sent.put(297)
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - before:
            task.cancel()
        sent.put(300)
        await sent.until_settled()
    assert sorted(sent.settled) == list(range(1, 601))
    assert len(counted(await log(settings))) == 600


@pytest.mark.parametrize("in_flight", [True, False])
async def test_closing_does_not_wait_for_kafka(
    own_kafka: EmbeddedKafka, settings: Settings, in_flight: bool
) -> None:
    settings = await topic_on(own_kafka, settings)
    loop = asyncio.get_running_loop()
    with nullcontext() if in_flight else silent(own_kafka):
        async with sending(settings) as sent:
            if in_flight:
                await sent.connect()
                freeze(own_kafka)
            sent.put(1000)
            await asyncio.sleep(0.1)
            begin = loop.time()
        assert loop.time() - begin < 1
        own_kafka.process.kill(signal.SIGCONT)


async def test_connecting_without_kafka_raises_and_leaves_nothing_behind(
    settings: Settings, unused_port: int
) -> None:
    settings = configured(settings, kafka_bootstrap_servers=f"127.0.0.1:{unused_port}")
    async with sending(settings) as sent:
        with pytest.raises(RetryableError, match=rf"Kafka at 127.0.0.1:{unused_port}: "):
            await sent.connect()
