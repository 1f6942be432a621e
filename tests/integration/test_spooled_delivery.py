"""Delivery through a spool: durability, the window, full spools, closing."""

import asyncio
import random
import sqlite3
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka.partitioner import murmur2

from execution_events.embedded import EmbeddedKafka
from execution_events.errors import RetryableError, SpoolFullError
from execution_events.publisher.delivery import relay, sender, spooled
from execution_events.publisher.delivery.drain import drain
from execution_events.publisher.delivery.sender import Sender
from execution_events.publisher.delivery.spooled import SpooledDelivery
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.directory import list_spools
from execution_events.publisher.spool.spool import Spool
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, consuming, until_stored
from tests.support.occurrences import Fetch
from tests.support.published import (
    counted,
    events,
    grow,
    log,
    nothing_left,
    records,
    silent,
    topic_on,
)
from tests.support.spooled import (
    Commit,
    attempt,
    big,
    deliver_all,
    delivering,
    directory_of,
    flush,
    intercept,
    opened_spool,
    until_open,
)
from tests.support.topics import make_topic


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return configured(settings, spool_dir=str(tmp_path / "spool"), close_timeout=1)


async def test_a_backlog_is_sent_in_order_within_the_window(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_spool(settings) as spool:
        spool.commit(records(events(20_000)), [], limit=0, partition_of=None)
    pending = []
    submit = Sender.submit

    def measured(self: Sender, record: PendingRecord) -> None:
        submit(self, record)
        pending.append(self.pending)

    monkeypatch.setattr(Sender, "submit", measured)
    async with delivering(settings) as delivery:
        assert delivery.pending == 20_000
        await flush(delivery)
    assert len(pending) == 20_000
    assert max(pending) <= relay._WINDOW
    found = await log(settings)
    assert len(found) == len(counted(found)) == 20_000
    with opened_spool(settings) as spool:
        assert (spool.pending, spool.fetched) == (0, 20_000)


async def test_a_record_is_sent_once_it_and_its_partition_are_on_the_disk(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Sender.submit
    spool = opened_spool(settings)

    def checked(self: Sender, record: PendingRecord) -> None:
        with sqlite3.connect(spool.path) as connection:
            [stored] = connection.execute(
                "SELECT partition FROM record WHERE sequence = ?", (record.sequence,)
            )
        connection.close()
        assert stored == (record.partition,)
        submit(self, record)

    monkeypatch.setattr(Sender, "submit", checked)
    async with SpooledDelivery(settings.kafka, settings.publisher, spool) as delivery:
        await deliver_all(delivery, records(events(50)))
        await until_open(delivery)
        await deliver_all(delivery, records(events(50)))
        await flush(delivery)
    assert len(await log(settings)) == 100


async def test_a_backlog_is_sent_first_and_to_its_partitions_after_the_topic_grew(
    own_kafka: EmbeddedKafka, settings: Settings, fetch: Fetch
) -> None:
    settings = await topic_on(own_kafka, settings)
    before, after = events(200, prefix="before"), events(200, prefix="after")
    async with delivering(settings) as delivery:
        await until_open(delivery)
        with silent(own_kafka):
            await deliver_all(delivery, records(before))
            assert await delivery.close() == 200
    await grow(settings, 6)
    async with consuming(settings):
        async with SpooledDelivery(
            settings.kafka, settings.publisher, opened_spool(settings)
        ) as delivery:
            assert delivery.pending == 200
            await deliver_all(delivery, records(after))
            await flush(delivery)
        await until_stored(settings)
    found = counted(await log(settings))
    assert len({record.source for record in found}) == 1
    assert {r.name: r.sequence for r in found} == {
        event.name: sequence for sequence, event in enumerate([*before, *after], 1)
    }
    assert {r.partition for r in found if r.sequence <= 200} == {0, 1, 2}
    assert {r.partition for r in found if r.sequence > 200} > {0, 1, 2}
    rows = await fetch("SELECT name, count FROM event")
    assert {row["name"]: row["count"] for row in rows} == {
        event.name: event.count for event in (*before, *after)
    }


async def test_records_are_stored_without_kafka_and_delivered_when_it_is_back(
    own_kafka: EmbeddedKafka, settings: Settings
) -> None:
    settings = await topic_on(own_kafka, settings)
    await own_kafka.stop()
    async with SpooledDelivery(
        settings.kafka, settings.publisher, opened_spool(settings)
    ) as delivery:
        try:
            async with asyncio.timeout(5):
                await deliver_all(delivery, records(events(100)))
        finally:
            await own_kafka.start()
        await flush(delivery)
        assert delivery._sender.pending == 0
    assert len(counted(await log(settings))) == 100


async def test_a_full_spool_raises_until_kafka_is_back(
    own_kafka: EmbeddedKafka, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooled, "_RETRY_DELAY", 0.02)
    settings = configured(await topic_on(own_kafka, settings), spool_max_bytes=2**20)
    async with delivering(settings) as delivery:
        with silent(own_kafka):
            results = [await attempt(delivery.deliver(record)) for record in big(100)]
            stored = results.count(None)
            assert {type(result) for result in results[stored:]} == {SpoolFullError}
            assert stored == delivery.pending
        await flush(delivery)
        await deliver_all(delivery, records(events(10)))
        await flush(delivery)
    assert len(counted(await log(settings))) == stored + 10


async def test_a_full_spool_waits_until_kafka_is_back(
    own_kafka: EmbeddedKafka, settings: Settings
) -> None:
    settings = configured(
        await topic_on(own_kafka, settings), spool_max_bytes=2**20, spool_full="wait"
    )
    async with delivering(settings) as delivery:
        with silent(own_kafka):
            delivering_all = [asyncio.create_task(delivery.deliver(record)) for record in big(100)]
            async with asyncio.timeout(DEADLINE):
                while not delivery._failing:
                    await delivery.progress()
            for task in delivering_all[80:]:
                task.cancel()
            assert not all(task.done() for task in delivering_all[:80])
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*delivering_all[:80])
        await flush(delivery)
    found = counted(await log(settings))
    assert [r.name for r in sorted(found, key=lambda r: r.sequence)] == [
        f"event.{number}" for number in range(80)
    ]


async def test_more_records_than_fit_are_stored_in_parts(settings: Settings) -> None:
    settings = configured(settings, spool_max_bytes=2**20, spool_full="wait")
    async with delivering(settings) as delivery:
        async with asyncio.timeout(DEADLINE):
            await deliver_all(delivery, big(150))
        await flush(delivery)
    assert len(counted(await log(settings))) == 150


async def test_closing_fails_callers_that_wait_for_a_full_spool(
    settings: Settings, unused_port: int
) -> None:
    settings = configured(
        settings,
        spool_max_bytes=2**20,
        spool_full="wait",
        kafka_bootstrap_servers=f"127.0.0.1:{unused_port}",
    )
    async with delivering(settings) as delivery:
        delivering_all = [asyncio.create_task(delivery.deliver(record)) for record in big(100)]
        await asyncio.sleep(0)
        undelivered = await delivery.close()
        results = await asyncio.gather(*delivering_all, return_exceptions=True)
        assert {type(result) for result in results} == {type(None), RetryableError}
        assert undelivered == results.count(None)
        with pytest.raises(RetryableError, match="closed"):
            await delivery.deliver(records(events(1))[0])


async def paused_commit(
    monkeypatch: pytest.MonkeyPatch, spool: Spool
) -> tuple[asyncio.Event, threading.Event]:
    """Pause the commits of new records before they return.

    Returns an event that is set by the commit, and one that resumes it.
    """
    loop = asyncio.get_running_loop()
    reached, resume = asyncio.Event(), threading.Event()

    def commit(commit: Commit) -> Any:
        fetched = commit.run()
        if commit.new:
            loop.call_soon_threadsafe(reached.set)
            assert resume.wait(DEADLINE)
        return fetched

    intercept(monkeypatch, spool, commit)
    return reached, resume


async def test_closing_during_a_commit_returns_the_number_on_the_disk(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened_spool(settings)
    reached, resume = await paused_commit(monkeypatch, spool)
    async with SpooledDelivery(settings.kafka, settings.publisher, spool) as delivery:
        await until_open(delivery)
        delivering_all = asyncio.gather(*map(delivery.deliver, records(events(10))))
        await reached.wait()
        late = asyncio.create_task(delivery.deliver(records(events(11))[10]))
        closing = asyncio.create_task(delivery.close(wait=False))
        await asyncio.sleep(0.1)
        resume.set()
        assert await closing == 10
        await delivering_all
        with pytest.raises(RetryableError, match="closed"):
            await late
    with opened_spool(settings) as spool:
        assert spool.pending == 10


async def test_cancelling_all_tasks_during_a_commit_loses_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = asyncio.all_tasks()
    spool = opened_spool(settings)
    reached, resume = await paused_commit(monkeypatch, spool)
    async with SpooledDelivery(settings.kafka, settings.publisher, spool) as delivery:
        await until_open(delivery)
        tasks = asyncio.all_tasks() - before
        delivering_all = asyncio.gather(*map(delivery.deliver, records(events(10))))
        await reached.wait()
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0.05)
        resume.set()
        async with asyncio.timeout(DEADLINE):
            await delivering_all
        await flush(delivery)
        assert delivery.pending == delivery._sender.pending == 0 or delivery._relay._acknowledged
    assert len(counted(await log(settings))) == 10


async def test_a_flush_does_not_overtake_a_fetch(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spool counts records as fetched a moment before they are sent."""
    spool = opened_spool(settings)
    spool.commit(records(events(10)), [], limit=0, partition_of=None)
    reached, resume = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def commit(commit: Commit) -> Any:
        fetched = commit.run()
        if fetched:
            loop.call_soon_threadsafe(reached.set)
            assert resume.wait(DEADLINE)
        return fetched

    intercept(monkeypatch, spool, commit)
    async with SpooledDelivery(settings.kafka, settings.publisher, spool) as delivery:
        await reached.wait()
        assert spool.fetched == spool.last
        flushing = asyncio.create_task(delivery.flush())
        await asyncio.sleep(0)
        assert not flushing.done()
        resume.set()
        async with asyncio.timeout(DEADLINE):
            await flushing
        assert len(await log(settings)) == 10


async def test_a_refused_record_stays_listed_and_delays_no_other(settings: Settings) -> None:
    settings = configured(settings, topic=f"{settings.kafka.topic}-narrow")
    await make_topic(settings, 1, {"max.message.bytes": "9000"})
    published = events(100)
    hard = "".join(chr(0x4E00 + number * 7919 % 20000) for number in range(5400))
    published[40] = msgspec.structs.replace(published[40], message=hard)
    async with delivering(settings) as delivery:
        await deliver_all(delivery, records(published))
        await flush(delivery)
    [info] = list_spools(directory_of(settings))
    assert info.summary is not None
    assert (info.summary.pending, info.summary.refused) == (0, 1)
    assert len(counted(await log(settings))) == 99


@pytest.mark.parametrize("seed", range(3))
async def test_intermittently_blocked_partitions_keep_their_order_and_delay_no_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(relay, "_WINDOW", 60)
    monkeypatch.setattr(sender, "backoff", lambda _: rng.uniform(0.01, 0.05))
    blocked: set[int] = set()
    send = Sender.send

    async def refused(self: Sender, records: Any, partition: int, limit: int) -> Any:
        result = await send(self, records, partition, min(limit, rng.randrange(1, 40)))
        # Records that have arrived may be reported as failed, too.
        return (1, -1, RetryableError("blocked")) if partition in blocked else result

    monkeypatch.setattr(Sender, "send", refused)
    with opened_spool(settings) as spool:
        spool.commit(records(events(500)), [], limit=200, partition_of=lambda key: key[-1] % 3)
    async with delivering(settings) as delivery:
        for batch in range(20):
            blocked = set(rng.sample(range(3), rng.randrange(3)))
            await deliver_all(delivery, records(events(50, prefix=f"later-{batch}")))
            await asyncio.sleep(rng.uniform(0, 0.1))
        blocked = {1}
        last = records(events(300, prefix="last"))
        others = sum(key_partition(record) != 1 for record in last)
        await deliver_all(delivery, last)
        async with asyncio.timeout(DEADLINE):
            while others > sum(
                record.name.startswith("last.") and record.partition != 1
                for record in await log(settings)
            ):
                await asyncio.sleep(0.1)
        flushing = asyncio.create_task(delivery.flush())
        await asyncio.wait([flushing], timeout=0.3)
        assert not flushing.done()
        blocked = set()
        async with asyncio.timeout(DEADLINE):
            await flushing
        await flush(delivery)
        assert delivery._sender.pending == 0
    found = counted(await log(settings))
    assert len(found) == 500 + 1000 + 300
    for partition in range(3):
        names = [r.name for r in found if r.partition == partition and r.name.startswith("event.")]
        assert names == sorted(names, key=lambda name: int(name.rpartition(".")[2]))
    with opened_spool(settings) as spool:
        assert (spool.pending, spool.held, spool.refused, spool.errors) == (0, 0, 0, {})


def key_partition(record: PendingRecord) -> int:
    return int((murmur2(record.key) & 0x7FFFFFFF) % 3)


async def test_draining_sends_all_records(settings: Settings) -> None:
    with opened_spool(settings) as spool:
        spool.commit(records(events(7000)), [], limit=0, partition_of=None)
    shown: list[int] = []
    async with nothing_left():
        spool = opened_spool(settings)
        assert (
            await drain(
                settings.kafka, settings.publisher, spool, timeout=DEADLINE, progress=shown.append
            )
            == 0
        )
    assert shown == sorted(shown)
    assert shown[-1] == 7000
    assert len(counted(await log(settings))) == 7000
    with opened_spool(settings) as again:
        assert again.pending == 0


async def test_draining_gives_up_without_acknowledgements(
    settings: Settings, unused_port: int
) -> None:
    settings = configured(settings, kafka_bootstrap_servers=f"127.0.0.1:{unused_port}")
    settings = configured(settings, close_timeout=30)
    spool = opened_spool(settings)
    spool.commit(records(events(10)), [], limit=0, partition_of=None)
    begin = asyncio.get_running_loop().time()
    async with nothing_left():
        assert (
            await drain(
                settings.kafka, settings.publisher, spool, timeout=0.2, progress=lambda sent: None
            )
            == 10
        )
    assert asyncio.get_running_loop().time() - begin < 1
    with opened_spool(settings) as again:
        draining = asyncio.create_task(
            drain(settings.kafka, settings.publisher, again, timeout=30, progress=lambda sent: None)
        )
        await asyncio.sleep(0.1)
        draining.cancel()
        async with asyncio.timeout(1):
            await asyncio.wait([draining])
        assert draining.cancelled()
