"""Through a spool: what is on the disk when, the window, full and failing disks, damage."""

import asyncio
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from aiokafka.partitioner import murmur2

from execution_events.embedded import EmbeddedKafka
from execution_events.errors import RetryableError, SpoolCorruptError, SpoolFullError
from execution_events.publisher.delivery import sender, spooled
from execution_events.publisher.delivery.sender import Outgoing, Sender
from execution_events.publisher.delivery.spooled import SpooledDelivery, drain
from execution_events.publisher.record import NewRecord
from execution_events.publisher.spool import directory as spool_directory
from execution_events.publisher.spool.directory import list_spools, open_spool
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
from tests.support.topics import make_topic


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return configured(settings, spool_dir=str(tmp_path / "spool"), close_timeout=1)


def directory_of(settings: Settings) -> Path:
    assert settings.publisher.spool_dir is not None
    return Path(settings.publisher.spool_dir)


def opened_spool(settings: Settings) -> Spool:
    return open_spool(directory_of(settings), settings.publisher.spool_max_bytes)


@asynccontextmanager
async def delivering(settings: Settings) -> AsyncIterator[SpooledDelivery]:
    async with nothing_left(), SpooledDelivery(settings, opened_spool(settings)) as delivery:
        yield delivery
    assert not [t for t in threading.enumerate() if t.name.startswith("execution-events-spool")]


async def keep_all(delivery: SpooledDelivery, new: Sequence[NewRecord]) -> None:
    await asyncio.gather(*map(delivery.keep, new))


async def flush(delivery: SpooledDelivery) -> None:
    async with asyncio.timeout(DEADLINE):
        await delivery.flush()


async def until_open(delivery: SpooledDelivery) -> None:
    """Return once it knows the partitions."""
    async with asyncio.timeout(DEADLINE):
        await delivery._sender.until_connected()


async def attempt(call: Awaitable[None]) -> RetryableError | None:
    try:
        await call
    except RetryableError as error:
        return error
    return None


def big(number: int) -> list[NewRecord]:
    """So many records of 16 KiB."""
    return records(msgspec.structs.replace(e, message="x" * 16384) for e in events(number))


class Turn(NamedTuple):
    """What `interfered` may do with a turn: the spool's own method, and its arguments."""

    own: Callable[[], Any]
    new: Sequence[NewRecord]


def interfere(
    monkeypatch: pytest.MonkeyPatch, spool: Spool, with_turn: Callable[[Turn], Any]
) -> None:
    exchange = spool.exchange

    def interfered(new: Sequence[NewRecord], acknowledged: Sequence[int], **options: Any) -> Any:
        return with_turn(Turn(lambda: exchange(new, acknowledged, **options), new))

    monkeypatch.setattr(spool, "exchange", interfered)


async def test_a_backlog_is_sent_in_order_within_the_window(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_spool(settings) as spool:
        spool.exchange(records(events(20_000)), [], room=0, partition_of=None)
    pending = []
    submit = Sender.submit

    def measured(self: Sender, partition: int, record: Outgoing) -> None:
        submit(self, partition, record)
        pending.append(self.pending)

    monkeypatch.setattr(Sender, "submit", measured)
    async with delivering(settings) as delivery:
        assert delivery.left == 20_000
        await flush(delivery)
    assert len(pending) == 20_000
    assert max(pending) <= spooled._WINDOW
    found = await log(settings)
    assert len(found) == len(counted(found)) == 20_000
    with opened_spool(settings) as spool:
        assert (spool.left, spool.given) == (0, 20_000)


async def test_a_record_is_sent_when_it_and_its_partition_are_on_the_disk(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Sender.submit
    spool = opened_spool(settings)

    def checked(self: Sender, partition: int, record: Outgoing) -> None:
        with sqlite3.connect(spool.path) as connection:
            [stored] = connection.execute(
                "SELECT partition FROM record WHERE sequence = ?", (record.sequence,)
            )
        connection.close()
        assert stored == (partition,)
        submit(self, partition, record)

    monkeypatch.setattr(Sender, "submit", checked)
    async with SpooledDelivery(settings, spool) as delivery:
        await keep_all(delivery, records(events(50)))
        await until_open(delivery)
        await keep_all(delivery, records(events(50)))
        await flush(delivery)
    assert len(await log(settings)) == 100


async def test_what_was_left_goes_first_and_to_its_partitions_when_the_topic_has_grown(
    own_kafka: EmbeddedKafka, settings: Settings, fetch: Fetch
) -> None:
    settings = await topic_on(own_kafka, settings)
    before, after = events(200, prefix="before"), events(200, prefix="after")
    async with delivering(settings) as delivery:
        await until_open(delivery)
        with silent(own_kafka):
            await keep_all(delivery, records(before))
            assert await delivery.close() == 200
    await grow(settings, 6)
    async with consuming(settings):
        async with SpooledDelivery(settings, opened_spool(settings)) as delivery:
            assert delivery.left == 200
            await keep_all(delivery, records(after))
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


async def test_it_opens_and_keeps_without_kafka_and_delivers_when_kafka_is_there(
    own_kafka: EmbeddedKafka, settings: Settings
) -> None:
    settings = await topic_on(own_kafka, settings)
    await own_kafka.stop()
    async with SpooledDelivery(settings, opened_spool(settings)) as delivery:
        try:
            async with asyncio.timeout(5):
                await keep_all(delivery, records(events(100)))
        finally:
            await own_kafka.start()
        await flush(delivery)
        assert delivery._sender.pending == 0
    assert len(counted(await log(settings))) == 100


async def test_a_full_spool_raises_until_kafka_is_back(
    own_kafka: EmbeddedKafka, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooled, "_PAUSE", 0.02)
    settings = configured(await topic_on(own_kafka, settings), spool_max_bytes=2**20)
    async with delivering(settings) as delivery:
        with silent(own_kafka):
            results = [await attempt(delivery.keep(record)) for record in big(100)]
            kept = results.count(None)
            assert {type(result) for result in results[kept:]} == {SpoolFullError}
            assert kept == delivery.left
        await flush(delivery)
        await keep_all(delivery, records(events(10)))
        await flush(delivery)
    assert len(counted(await log(settings))) == kept + 10


async def test_a_full_spool_waits_until_kafka_is_back(
    own_kafka: EmbeddedKafka, settings: Settings
) -> None:
    settings = configured(
        await topic_on(own_kafka, settings), spool_max_bytes=2**20, spool_full="wait"
    )
    async with delivering(settings) as delivery:
        with silent(own_kafka):
            keeping = [asyncio.create_task(delivery.keep(record)) for record in big(100)]
            async with asyncio.timeout(DEADLINE):
                while not delivery._failing:
                    await delivery.moved()
            for task in keeping[80:]:
                task.cancel()
            assert not all(task.done() for task in keeping[:80])
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*keeping[:80])
        await flush(delivery)
    found = counted(await log(settings))
    assert [r.name for r in sorted(found, key=lambda r: r.sequence)] == [
        f"event.{number}" for number in range(80)
    ]


async def test_more_at_once_than_fits_is_kept_in_parts(settings: Settings) -> None:
    settings = configured(settings, spool_max_bytes=2**20, spool_full="wait")
    async with delivering(settings) as delivery:
        async with asyncio.timeout(DEADLINE):
            await keep_all(delivery, big(150))
        await flush(delivery)
    assert len(counted(await log(settings))) == 150


async def test_who_waits_for_a_full_spool_is_told_of_its_closing(
    settings: Settings, unused_port: int
) -> None:
    settings = configured(
        settings,
        spool_max_bytes=2**20,
        spool_full="wait",
        kafka_bootstrap_servers=f"127.0.0.1:{unused_port}",
    )
    async with delivering(settings) as delivery:
        keeping = [asyncio.create_task(delivery.keep(record)) for record in big(100)]
        await asyncio.sleep(0)
        left = await delivery.close()
        results = await asyncio.gather(*keeping, return_exceptions=True)
        assert {type(result) for result in results} == {type(None), RetryableError}
        assert left == results.count(None)
        with pytest.raises(RetryableError, match="closed"):
            await delivery.keep(records(events(1))[0])


@pytest.mark.parametrize("error", [SpoolFullError("disk"), RetryableError("disk"), ValueError("?")])
async def test_a_disk_that_fails_is_tried_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(spooled, "_PAUSE", 0.02)
    spool = opened_spool(settings)
    fails = False

    def turn(turn: Turn) -> Any:
        if fails:
            raise error
        return turn.own()

    interfere(monkeypatch, spool, turn)
    kept = []
    async with SpooledDelivery(settings, spool) as delivery:
        await until_open(delivery)
        for number, record in enumerate(records(events(300))):
            fails = 50 <= number < 100
            result = await attempt(delivery.keep(record))
            assert (result is not None) == fails
            # Each caller has an error of its own, whose traceback is the caller's.
            assert result is not error
            if result is None:
                kept.append(f"event.{number}")
        assert len(kept) == 250
        await flush(delivery)
    assert sorted(record.name for record in counted(await log(settings))) == sorted(kept)
    with opened_spool(settings) as spool:
        assert spool.left == 0


async def test_a_spool_that_is_damaged_in_use_is_replaced(
    own_kafka: EmbeddedKafka, settings: Settings, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = await topic_on(own_kafka, settings)
    monkeypatch.setattr(spooled, "_WINDOW", 1000)
    # More than SQLite keeps in memory.
    published = [msgspec.structs.replace(event, message="x" * 2000) for event in events(3000)]
    before, after = records(published[:2000]), records(published[2000:])
    async with consuming(settings):
        async with SpooledDelivery(settings, opened_spool(settings)) as delivery:
            await until_open(delivery)
            with silent(own_kafka):
                await keep_all(delivery, before)
                damaged = delivery._spool
                # Those of the window are in memory; all pages of the others go.
                damaged._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                with damaged.path.open("r+b") as file:
                    for page in range(4, damaged.path.stat().st_size // 4096):
                        file.seek(page * 4096)
                        file.write(b"\xa5" * 4096)
                # It reads some of them.
                monkeypatch.setattr(spooled, "_WINDOW", 1010)
                async with asyncio.timeout(DEADLINE):
                    await keep_all(delivery, after)
                assert delivery._spool is not damaged
                assert delivery._sender.pending == 0
            await flush(delivery)
            assert delivery._retired == []
        await until_stored(settings)
    rows = await fetch("SELECT name, count FROM event")
    expected = {event.name: event.count for event in (*published[:1000], *published[2000:])}
    assert {row["name"]: row["count"] for row in rows} == expected
    found = counted(await log(settings))
    for partition in range(3):
        # Of one execution, what was published first comes first.
        sources = [record.source for record in found if record.partition == partition]
        assert sources == sorted(sources, key=lambda source: source != damaged.source)
    assert sorted((info.set_aside, info.owned) for info in list_spools(directory_of(settings))) == [
        (False, False),
        (True, False),
    ]


@pytest.mark.parametrize("policy", ["raise", "wait"])
async def test_a_damaged_spool_is_replaced_when_the_disk_can_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(spooled, "_PAUSE", 0.02)
    fails = False
    opening = spool_directory.open_spool

    def opened(directory: Path, max_bytes: int) -> Spool:
        if fails:
            raise SpoolFullError("no room for a file")
        return opening(directory, max_bytes)

    monkeypatch.setattr(spool_directory, "open_spool", opened)
    spool = opened_spool(settings)

    def damaged(turn: Turn) -> Any:
        if turn.new:
            raise SpoolCorruptError("damaged")
        return turn.own()

    one, two, three = records(events(3))
    async with SpooledDelivery(configured(settings, spool_full=policy), spool) as delivery:
        await delivery.keep(one)
        await flush(delivery)
        interfere(monkeypatch, spool, damaged)
        fails = True
        keeping = asyncio.create_task(delivery.keep(two))
        if policy == "raise":
            with pytest.raises(SpoolFullError, match="no room"):
                await keeping
            with pytest.raises(SpoolFullError, match="no room"):
                await delivery.keep(two)
        else:
            await asyncio.wait([keeping], timeout=0.2)
            assert not keeping.done()
        fails = False
        if policy == "wait":
            await keeping
        await delivery.keep(three)
        await flush(delivery)
    names = ["event.0", *(["event.1"] if policy == "wait" else []), "event.2"]
    assert sorted(record.name for record in counted(await log(settings))) == names


async def test_a_flush_ends_when_the_spool_is_replaced(
    own_kafka: EmbeddedKafka, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = await topic_on(own_kafka, settings)
    spool = opened_spool(settings)
    async with SpooledDelivery(settings, spool) as delivery:
        await until_open(delivery)
        with silent(own_kafka):
            await keep_all(delivery, records(events(100)))
            flushing = asyncio.create_task(delivery.flush())
            await asyncio.sleep(0)

            def damaged(turn: Turn) -> Any:
                raise SpoolCorruptError("damaged")

            interfere(monkeypatch, spool, damaged)
            await delivery.keep(records(events(101))[100])
            assert not flushing.done()
        async with asyncio.timeout(DEADLINE):
            await flushing
        assert delivery._retired == [] or not any(s.pending for s in delivery._retired)
        await flush(delivery)
    assert len(counted(await log(settings))) == 101


async def test_what_a_damaged_spool_leaves_undelivered_is_said_at_closing(
    own_kafka: EmbeddedKafka,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = await topic_on(own_kafka, settings)
    spool = opened_spool(settings)

    def damaged(turn: Turn) -> Any:
        raise SpoolCorruptError("damaged")

    async with SpooledDelivery(settings, spool) as delivery:
        await until_open(delivery)
        with silent(own_kafka):
            await keep_all(delivery, records(events(10)))
            interfere(monkeypatch, spool, damaged)
            await keep_all(delivery, records(events(5)))
            assert await delivery.close() == 15
    assert "events of a damaged spool not delivered" in caplog.messages


async def held_turn(
    monkeypatch: pytest.MonkeyPatch, spool: Spool
) -> tuple[asyncio.Event, threading.Event]:
    """The next turn with something new says when it is in the middle, and goes on when told."""
    loop = asyncio.get_running_loop()
    reached, go_on = asyncio.Event(), threading.Event()

    def turn(turn: Turn) -> Any:
        given = turn.own()
        if turn.new:
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(DEADLINE)
        return given

    interfere(monkeypatch, spool, turn)
    return reached, go_on


async def test_closing_in_the_middle_of_a_turn_tells_what_is_on_the_disk(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened_spool(settings)
    reached, go_on = await held_turn(monkeypatch, spool)
    async with SpooledDelivery(settings, spool) as delivery:
        await until_open(delivery)
        keeping = asyncio.gather(*map(delivery.keep, records(events(10))))
        await reached.wait()
        late = asyncio.create_task(delivery.keep(records(events(11))[10]))
        closing = asyncio.create_task(delivery.close(wait=False))
        await asyncio.sleep(0.1)
        go_on.set()
        assert await closing == 10
        await keeping
        with pytest.raises(RetryableError, match="closed"):
            await late
    with opened_spool(settings) as spool:
        assert spool.left == 10


async def test_a_program_that_cancels_all_tasks_in_a_turn_loses_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = asyncio.all_tasks()
    spool = opened_spool(settings)
    reached, go_on = await held_turn(monkeypatch, spool)
    async with SpooledDelivery(settings, spool) as delivery:
        await until_open(delivery)
        tasks = asyncio.all_tasks() - before
        keeping = asyncio.gather(*map(delivery.keep, records(events(10))))
        await reached.wait()
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        async with asyncio.timeout(DEADLINE):
            await keeping
        await flush(delivery)
        assert delivery.left == delivery._sender.pending == 0 or delivery._acknowledged
    assert len(counted(await log(settings))) == 10


async def test_a_flush_does_not_overtake_the_turn_that_gives(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spool says that it has given them a moment before they are sent."""
    spool = opened_spool(settings)
    spool.exchange(records(events(10)), [], room=0, partition_of=None)
    reached, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def turn(turn: Turn) -> Any:
        given = turn.own()
        if given:
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(DEADLINE)
        return given

    interfere(monkeypatch, spool, turn)
    async with SpooledDelivery(settings, spool) as delivery:
        await reached.wait()
        assert spool.given == spool.last
        flushing = asyncio.create_task(delivery.flush())
        await asyncio.sleep(0)
        assert not flushing.done()
        go_on.set()
        async with asyncio.timeout(DEADLINE):
            await flushing
        assert len(await log(settings)) == 10


async def test_what_kafka_refuses_stays_listed_and_holds_up_nothing(settings: Settings) -> None:
    settings = configured(settings, topic=f"{settings.kafka.topic}-narrow")
    await make_topic(settings, 1, {"max.message.bytes": "9000"})
    published = events(100)
    hard = "".join(chr(0x4E00 + number * 7919 % 20000) for number in range(5400))
    published[40] = msgspec.structs.replace(published[40], message=hard)
    async with delivering(settings) as delivery:
        await keep_all(delivery, records(published))
        await flush(delivery)
    [info] = list_spools(directory_of(settings))
    assert info.summary is not None
    assert (info.summary.left, info.summary.refused) == (0, 1)
    assert len(counted(await log(settings))) == 99


@pytest.mark.parametrize("seed", range(3))
async def test_partitions_that_wait_now_and_then_keep_their_order_and_stop_no_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(spooled, "_WINDOW", 60)
    monkeypatch.setattr(sender, "_BACK_OFF", (0.01, 0.05))
    waiting: set[int] = set()
    send = Sender.send

    async def refused(self: Sender, records: Any, partition: int, most: int) -> Any:
        result = await send(self, records, partition, min(most, rng.randrange(1, 40)))
        # Also what has arrived may be taken for refused.
        return (1, -1, RetryableError("waits")) if partition in waiting else result

    monkeypatch.setattr(Sender, "send", refused)
    with opened_spool(settings) as spool:
        spool.exchange(records(events(500)), [], room=200, partition_of=lambda key: key[-1] % 3)
    async with delivering(settings) as delivery:
        for batch in range(20):
            waiting = set(rng.sample(range(3), rng.randrange(3)))
            await keep_all(delivery, records(events(50, prefix=f"later-{batch}")))
            await asyncio.sleep(rng.uniform(0, 0.1))
        waiting = {1}
        last = records(events(300, prefix="last"))
        others = sum(key_partition(record) != 1 for record in last)
        await keep_all(delivery, last)
        async with asyncio.timeout(DEADLINE):
            while others > sum(
                record.name.startswith("last.") and record.partition != 1
                for record in await log(settings)
            ):
                await asyncio.sleep(0.1)
        flushing = asyncio.create_task(delivery.flush())
        await asyncio.wait([flushing], timeout=0.3)
        assert not flushing.done()
        waiting = set()
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
        assert (spool.left, spool.held, spool.refused, spool.reasons) == (0, 0, 0, {})


def key_partition(record: NewRecord) -> int:
    return int((murmur2(record.key) & 0x7FFFFFFF) % 3)


async def test_a_spool_is_drained(settings: Settings) -> None:
    with opened_spool(settings) as spool:
        spool.exchange(records(events(7000)), [], room=0, partition_of=None)
    shown: list[int] = []
    async with nothing_left():
        spool = opened_spool(settings)
        assert await drain(settings, spool, timeout=DEADLINE, progress=shown.append) == 0
    assert shown == sorted(shown)
    assert shown[-1] == 7000
    assert len(counted(await log(settings))) == 7000
    with opened_spool(settings) as again:
        assert again.left == 0


async def test_draining_gives_up_when_nothing_is_acknowledged(
    settings: Settings, unused_port: int
) -> None:
    settings = configured(settings, kafka_bootstrap_servers=f"127.0.0.1:{unused_port}")
    settings = configured(settings, close_timeout=30)
    spool = opened_spool(settings)
    spool.exchange(records(events(10)), [], room=0, partition_of=None)
    begin = asyncio.get_running_loop().time()
    async with nothing_left():
        assert await drain(settings, spool, timeout=0.2, progress=lambda sent: None) == 10
    assert asyncio.get_running_loop().time() - begin < 1
    with opened_spool(settings) as again:
        draining = asyncio.create_task(
            drain(settings, again, timeout=30, progress=lambda sent: None)
        )
        await asyncio.sleep(0.1)
        draining.cancel()
        async with asyncio.timeout(1):
            await asyncio.wait([draining])
        assert draining.cancelled()
