"""The publisher with and without a spool."""

import asyncio
import os
import random
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
import uvloop

from execution_events.embedded import EmbeddedKafka
from execution_events.errors import RetryableError, SettingsError
from execution_events.kafka import producer
from execution_events.publisher import Publisher
from execution_events.publisher.delivery import connection, direct
from execution_events.publisher.delivery.direct import DirectDelivery
from execution_events.publisher.event import occurrence_of
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.directory import list_spools
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, consuming, until_stored
from tests.support.occurrences import Fetch
from tests.support.published import (
    counted,
    events,
    log,
    nothing_left,
    records,
    silent,
    topic_on,
)


@pytest.fixture(params=["direct", "spooled"])
def either(settings: Settings, request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """The settings of a publisher without a spool, then with one."""
    if request.param == "direct":
        return settings
    return configured(settings, spool_dir=str(tmp_path / "spool"))


@asynccontextmanager
async def bounded(seconds: float) -> AsyncIterator[None]:
    """Check that the block ends within `seconds`."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    async with asyncio.timeout(DEADLINE):
        yield
    assert loop.time() - begin < seconds


def delivery_of(publisher: Publisher) -> DirectDelivery:
    assert isinstance(publisher._delivery, DirectDelivery)
    return publisher._delivery


async def test_every_event_counts_once(either: Settings, fetch: Fetch) -> None:
    published = events(2000)
    async with consuming(either):
        async with Publisher(either) as publisher:
            await asyncio.gather(*map(publisher.publish, published))
            await publisher.flush(DEADLINE)
        await until_stored(either)
    rows = await fetch("SELECT name, count FROM event")
    assert {row["name"]: row["count"] for row in rows} == {e.name: e.count for e in published}
    [source] = {record.source for record in counted(await log(either))}
    assert source.startswith("urn:uuid:")


async def test_events_of_one_execution_are_in_the_order_of_publishing(either: Settings) -> None:
    async def work(execution: int, publisher: Publisher) -> None:
        for event in events(50, executions=1, prefix=f"execution-{execution}"):
            await publisher.publish(event)

    async with Publisher(either) as publisher:
        await asyncio.gather(*(work(number, publisher) for number in range(20)))
    found = counted(await log(either))
    for execution in range(20):
        mine = [r.name for r in found if r.name.startswith(f"execution-{execution}.")]
        assert mine == [f"execution-{execution}.{number}" for number in range(50)]


async def test_a_source_may_begin_with_sequence_0(settings: Settings) -> None:
    record = PendingRecord.of(occurrence_of(events(1)[0]))
    async with DirectDelivery(settings.kafka, settings.publisher, first_sequence=0) as delivery:
        await delivery.deliver(record)
    [found] = await log(settings)
    assert found.sequence == 0


@pytest.mark.parametrize("loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop])
async def test_a_publisher_works_on_any_event_loop(
    either: Settings, loop_factory: object, own_kafka: EmbeddedKafka
) -> None:
    either = configured(await topic_on(own_kafka, either), close_timeout=1)

    async def main() -> int:
        async with nothing_left(), Publisher(either) as publisher:
            await asyncio.gather(*map(publisher.publish, events(300)))
            await publisher.flush(DEADLINE)
            with silent(own_kafka):
                late = asyncio.gather(
                    *map(publisher.publish, events(10, prefix="late")), return_exceptions=True
                )
                await asyncio.sleep(0)
                undelivered = await publisher.close()
                await late
            return undelivered

    def run() -> int:
        with asyncio.Runner(loop_factory=loop_factory) as runner:  # type: ignore[arg-type]
            return runner.run(main())

    assert await asyncio.to_thread(run) == 10


async def test_opening_without_kafka_raises(settings: Settings, unused_port: int) -> None:
    away = configured(settings, kafka_bootstrap_servers=f"127.0.0.1:{unused_port}")
    async with nothing_left(), bounded(1):
        with pytest.raises(RetryableError, match=rf"Kafka at 127.0.0.1:{unused_port}: "):
            await Publisher(away).__aenter__()


async def test_opening_with_a_frozen_kafka_raises_in_time(
    own_kafka: EmbeddedKafka, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = await topic_on(own_kafka, settings)
    monkeypatch.setattr(connection, "_CONNECT_TIMEOUT", 0.5)
    with silent(own_kafka):
        async with nothing_left(), bounded(1):
            with pytest.raises(RetryableError, match="no answer"):
                await Publisher(settings).__aenter__()


async def test_opening_without_the_topic_raises(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "_TOPIC_INTERVAL", 0.1)
    async with nothing_left():
        with pytest.raises(
            RetryableError,
            match=r"topic not-there does not exist: .* `execution-events topic create`",
        ):
            await Publisher(configured(settings, topic="not-there")).__aenter__()


async def test_publishing_times_out_and_recovers(
    own_kafka: EmbeddedKafka, settings: Settings
) -> None:
    settings = configured(await topic_on(own_kafka, settings), publish_timeout=1)
    published = events(200)
    async with Publisher(settings) as publisher:
        with silent(own_kafka):
            async with bounded(2):
                results = await asyncio.gather(
                    *map(publisher.publish, published[:100]), return_exceptions=True
                )
            assert {type(result) for result in results} == {RetryableError}
            with pytest.raises(RetryableError, match=r"not acknowledged all events within 0\.1 s"):
                await publisher.flush(0.1)
        await asyncio.gather(*map(publisher.publish, published[100:]))
        await publisher.flush(DEADLINE)
    assert len(counted(await log(settings))) == 200


@pytest.mark.parametrize("kafka", ["up", "silent", "silent at opening"])
async def test_closing_is_bounded_and_leaves_nothing_behind(
    own_kafka: EmbeddedKafka, either: Settings, kafka: str
) -> None:
    if kafka == "silent at opening" and either.publisher.spool_dir is None:
        return
    settings = configured(await topic_on(own_kafka, either), close_timeout=1)
    threads = threading.active_count()
    async with nothing_left():
        publisher = Publisher(settings)
        if kafka == "up":
            await publisher.__aenter__()
            await publisher.publish(events(1)[0])
            async with bounded(0.5):
                assert await publisher.close() == 0
        else:
            if kafka == "silent":
                await publisher.__aenter__()
            with silent(own_kafka):
                if kafka != "silent":
                    await publisher.__aenter__()
                publishing = asyncio.gather(
                    *map(publisher.publish, events(100)), return_exceptions=True
                )
                flushing = asyncio.create_task(publisher.flush())
                await asyncio.sleep(0.1)
                async with bounded(2):
                    assert await publisher.close() == 100
                results = await publishing
                with pytest.raises(RetryableError, match="closed"):
                    await flushing
            if either.publisher.spool_dir is None:
                assert {str(result) for result in results} == {
                    "the publisher was closed before Kafka acknowledged the event"
                }
            else:
                assert set(results) == {None}
                [spool] = list_spools(Path(either.publisher.spool_dir))
                assert spool.summary is not None
                assert (spool.owned, spool.summary.pending) == (False, 100)
        assert await publisher.close() == 0
        for call in (publisher.publish(events(1)[0]), publisher.flush()):
            with pytest.raises(RuntimeError, match="not open"):
                await call
    assert threading.active_count() <= threads


async def test_a_cancelled_close_closes_at_once(own_kafka: EmbeddedKafka, either: Settings) -> None:
    settings = configured(await topic_on(own_kafka, either), close_timeout=30)
    async with nothing_left():
        publisher = await Publisher(settings).__aenter__()
        with silent(own_kafka):
            publishing = asyncio.gather(*map(publisher.publish, events(9)), return_exceptions=True)
            await asyncio.sleep(0)
            async with bounded(2):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await publisher.close()
            await publishing
    if either.publisher.spool_dir is not None:
        assert [spool.owned for spool in list_spools(Path(either.publisher.spool_dir))] == [False]


async def test_a_publisher_is_reopened_only_after_closing(either: Settings) -> None:
    publisher = Publisher(either)
    for event in events(2):
        async with publisher:
            with pytest.raises(RuntimeError, match="already open"):
                await publisher.__aenter__()
            await publisher.publish(event)
    assert len(await log(either)) == 2


async def test_an_opening_that_fails_or_is_cancelled_releases_the_spool(
    settings: Settings, tmp_path: Path
) -> None:
    settings = configured(settings, spool_dir=str(tmp_path))
    opening = asyncio.create_task(Publisher(settings).__aenter__())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    wrong = configured(
        settings, kafka_security_protocol="SSL", kafka_ssl_ca_file=str(tmp_path / "none")
    )
    with pytest.raises(SettingsError):
        await Publisher(wrong).__aenter__()
    assert [spool.owned for spool in list_spools(tmp_path)] == [False]


async def test_a_cancelled_publish_affects_no_other(either: Settings) -> None:
    rng = random.Random(2)
    async with Publisher(either) as publisher:
        tasks = [asyncio.create_task(publisher.publish(event)) for event in events(1000)]
        cancelled = set(rng.sample(range(1000), 300))
        for step, number in enumerate(sorted(cancelled)):
            tasks[number].cancel()
            if step % 50 == 0:
                await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await publisher.flush(DEADLINE)
    published = {f"event.{number}" for number, result in enumerate(results) if result is None}
    names = [record.name for record in counted(await log(either))]
    assert len(published) >= 700
    assert published <= set(names)
    assert len(names) == len(set(names))


async def test_memory_is_bounded_without_kafka(
    own_kafka: EmbeddedKafka, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "_PENDING_BYTES", 100_000)
    settings = await topic_on(own_kafka, settings)
    async with Publisher(settings) as publisher:
        delivery = delivery_of(publisher)
        with silent(own_kafka):
            tasks = [asyncio.create_task(publisher.publish(event)) for event in events(2000)]
            await asyncio.sleep(0.1)
            assert 100_000 < delivery._bytes < 102_000
            assert delivery._sender.pending < 200
        await asyncio.gather(*tasks)
        assert delivery._bytes == 0
    assert len(counted(await log(settings))) == 2000


async def test_callers_above_the_memory_limit_get_the_timeout_and_the_closing(
    own_kafka: EmbeddedKafka, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "_PENDING_BYTES", 0)
    settings = await topic_on(own_kafka, settings)
    first, second, third = events(3)
    publisher = await Publisher(
        configured(settings, publish_timeout=1, close_timeout=1)
    ).__aenter__()
    with silent(own_kafka):
        queued = asyncio.create_task(publisher.publish(first))
        await asyncio.sleep(0)
        async with bounded(1.5):
            with pytest.raises(RetryableError, match="acknowledged nothing for 1 s"):
                await publisher.publish(second)
        delivery_of(publisher)._timeout = 30
        waiting = asyncio.create_task(publisher.publish(third))
        await asyncio.sleep(0)
        assert await publisher.close() == 1
        for task, error in (
            (queued, "acknowledged nothing"),
            (waiting, "closed before the event was"),
        ):
            with pytest.raises(RetryableError, match=error):
                await task


async def test_a_flush_ends_while_other_tasks_publish(either: Settings) -> None:
    names = count()
    async with Publisher(either) as publisher:

        async def work() -> None:
            while True:
                await publisher.publish(events(1, prefix=f"endless-{next(names)}")[0])

        workers = [asyncio.create_task(work()) for _ in range(20)]
        for _ in range(20):
            mine = events(1, prefix=f"mine-{next(names)}")[0]
            await publisher.publish(mine)
            await publisher.flush(5)
            queues = publisher._delivery._sender.pending_by_partition  # type: ignore[union-attr]
            pending = b"".join(record.value for _, queue in queues for record in queue)
            assert f'"{mine.name}"'.encode() not in pending
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def test_a_flush_does_not_wait_for_later_events(either: Settings) -> None:
    before, after = records(events(2))
    async with Publisher(configured(either, close_timeout=1)) as publisher:
        delivery = publisher._delivery
        assert delivery is not None
        delivering = asyncio.create_task(delivery.deliver(before))
        await asyncio.sleep(0)
        flushing = asyncio.create_task(publisher.flush())
        await asyncio.sleep(0)
        # The topic has no such partition.
        after.sequence, after.partition, after.attempted_at = 1_000_000, 9, after.created_at
        delivery._sender.submit(after)
        async with bounded(5):
            await delivering
            await flushing
        assert delivery._sender.pending == 1


def complaint(call: Awaitable[object]) -> str:
    """Return the error that a coroutine raises at once, without an event loop."""
    try:
        call.__await__().send(None)
    except RuntimeError as error:
        return str(error)
    except StopIteration:
        return ""
    return "waiting"


async def test_a_fork_can_neither_use_nor_close_the_publisher(either: Settings) -> None:
    published = events(20)
    async with Publisher(either) as publisher:
        await asyncio.gather(*map(publisher.publish, published[:10]))
        process = os.fork()
        if process == 0:
            code = 1
            try:
                errors = [
                    complaint(publisher.publish(published[0])),
                    complaint(publisher.flush()),
                    complaint(publisher.close()),
                ]
                leaving = complaint(publisher.__aexit__(None, None, None))
                refused = all("before a fork" in error for error in errors)
                code = 0 if refused and leaving == "" else 2
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, process, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        if either.publisher.spool_dir is not None:
            assert [spool.owned for spool in list_spools(Path(either.publisher.spool_dir))] == [
                True
            ]
        async with bounded(5):
            await asyncio.gather(*map(publisher.publish, published[10:]))
            await publisher.flush()
    assert len(await log(either)) == 20


async def test_another_event_loop_can_neither_use_nor_close_the_publisher(either: Settings) -> None:
    published = events(20)
    async with Publisher(either) as publisher:
        await asyncio.gather(*map(publisher.publish, published[:10]))
        element = publisher.element(
            execution_id="e", namespace="n", object_name="o", elem_type="t", elem_id="i"
        )

        async def complain() -> list[str]:
            errors = []
            for call in (
                publisher.publish(published[0]),
                element.event("启动##ActionStart", action_name="create"),
                element.action("create").__aenter__(),
                publisher.flush(),
                publisher.close(),
                publisher.__aexit__(None, None, None),
            ):
                with pytest.raises(RuntimeError) as raised:
                    async with asyncio.timeout(2):
                        await call
                errors.append(str(raised.value))
            return errors

        errors = await asyncio.to_thread(asyncio.run, complain())
        assert all("another event loop" in error for error in errors)
        await asyncio.gather(*map(publisher.publish, published[10:]))
        await publisher.flush()
    assert len(await log(either)) == 20


async def test_a_worker_may_change_its_working_directory(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spool_dir in ("spool", "~/home"):
        environ = {
            "EXECUTION_EVENTS_SPOOL_DIR": spool_dir,
            "EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            "EXECUTION_EVENTS_TOPIC": settings.kafka.topic,
        }
        monkeypatch.chdir(tmp_path)
        async with Publisher.from_settings(environ) as publisher:
            monkeypatch.chdir(tmp_path / "elsewhere")
            for event in events(3):
                await publisher.publish(event)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} >= {"spool", "home"}
    assert len(await log(settings)) == 6


async def test_publishing_works_after_all_tasks_were_cancelled(either: Settings) -> None:
    before = asyncio.all_tasks()
    published = events(200)
    async with Publisher(either) as publisher:
        await asyncio.gather(*map(publisher.publish, published[:100]))
        for task in asyncio.all_tasks() - before:
            task.cancel()
        async with bounded(5):
            await asyncio.gather(*map(publisher.publish, published[100:]))
            await publisher.flush()
    assert len(counted(await log(either))) == 200
