"""Delivery through a spool on a failing disk, and through a damaged one."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from execution_events.embedded import EmbeddedKafka
from execution_events.errors import RetryableError, SpoolCorruptError, SpoolFullError
from execution_events.publisher.delivery import relay, spooled
from execution_events.publisher.delivery.spooled import SpooledDelivery
from execution_events.publisher.spool import directory as spool_directory
from execution_events.publisher.spool.directory import list_spools
from execution_events.publisher.spool.spool import Spool
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, consuming, until_stored
from tests.support.occurrences import Fetch
from tests.support.published import (
    counted,
    events,
    log,
    records,
    silent,
    topic_on,
)
from tests.support.spooled import (
    Commit,
    attempt,
    deliver_all,
    directory_of,
    flush,
    intercept,
    opened_spool,
    until_open,
)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return configured(settings, spool_dir=str(tmp_path / "spool"), close_timeout=1)


@pytest.mark.parametrize("error", [SpoolFullError("disk"), RetryableError("disk"), ValueError("?")])
async def test_a_failing_disk_is_retried(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(spooled, "_RETRY_DELAY", 0.02)
    spool = opened_spool(settings)
    fails = False

    def commit(commit: Commit) -> Any:
        if fails:
            raise error
        return commit.run()

    intercept(monkeypatch, spool, commit)
    stored = []
    async with SpooledDelivery(settings.kafka, settings.publisher, spool) as delivery:
        await until_open(delivery)
        for number, record in enumerate(records(events(300))):
            fails = 50 <= number < 100
            result = await attempt(delivery.deliver(record))
            assert (result is not None) == fails
            # Each caller gets its own error, for a traceback of its own.
            assert result is not error
            if result is None:
                stored.append(f"event.{number}")
        assert len(stored) == 250
        await flush(delivery)
    assert sorted(record.name for record in counted(await log(settings))) == sorted(stored)
    with opened_spool(settings) as spool:
        assert spool.pending == 0


async def test_a_spool_damaged_in_use_is_replaced(
    own_kafka: EmbeddedKafka, settings: Settings, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = await topic_on(own_kafka, settings)
    monkeypatch.setattr(relay, "_WINDOW", 1000)
    # More than SQLite keeps in memory.
    published = [msgspec.structs.replace(event, message="x" * 2000) for event in events(3000)]
    before, after = records(published[:2000]), records(published[2000:])
    async with consuming(settings):
        async with SpooledDelivery(
            settings.kafka, settings.publisher, opened_spool(settings)
        ) as delivery:
            await until_open(delivery)
            with silent(own_kafka):
                await deliver_all(delivery, before)
                damaged = delivery._spool
                # The window is in memory; all pages of the other records are destroyed.
                damaged._file.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                with damaged.path.open("r+b") as file:
                    for page in range(4, damaged.path.stat().st_size // 4096):
                        file.seek(page * 4096)
                        file.write(b"\xa5" * 4096)
                # The next fetch reads some of them.
                monkeypatch.setattr(relay, "_WINDOW", 1010)
                async with asyncio.timeout(DEADLINE):
                    await deliver_all(delivery, after)
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
        # Earlier records of an execution come first.
        sources = [record.source for record in found if record.partition == partition]
        assert sources == sorted(sources, key=lambda source: source != damaged.source)
    assert sorted((info.set_aside, info.owned) for info in list_spools(directory_of(settings))) == [
        (False, False),
        (True, False),
    ]


@pytest.mark.parametrize("policy", ["raise", "wait"])
async def test_a_damaged_spool_is_replaced_once_the_disk_works_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(spooled, "_RETRY_DELAY", 0.02)
    fails = False
    opening = spool_directory.open_spool

    def opened(directory: Path, max_bytes: int) -> Spool:
        if fails:
            raise SpoolFullError("no room for a file")
        return opening(directory, max_bytes)

    monkeypatch.setattr(spool_directory, "open_spool", opened)
    spool = opened_spool(settings)

    def damaged(commit: Commit) -> Any:
        if commit.new:
            raise SpoolCorruptError("damaged")
        return commit.run()

    one, two, three = records(events(3))
    own = configured(settings, spool_full=policy)
    async with SpooledDelivery(own.kafka, own.publisher, spool) as delivery:
        await delivery.deliver(one)
        await flush(delivery)
        intercept(monkeypatch, spool, damaged)
        fails = True
        delivering_one = asyncio.create_task(delivery.deliver(two))
        if policy == "raise":
            with pytest.raises(SpoolFullError, match="no room"):
                await delivering_one
            with pytest.raises(SpoolFullError, match="no room"):
                await delivery.deliver(two)
        else:
            await asyncio.wait([delivering_one], timeout=0.2)
            assert not delivering_one.done()
        fails = False
        if policy == "wait":
            await delivering_one
        await delivery.deliver(three)
        await flush(delivery)
    names = ["event.0", *(["event.1"] if policy == "wait" else []), "event.2"]
    assert sorted(record.name for record in counted(await log(settings))) == names


async def test_a_flush_ends_after_the_spool_is_replaced(
    own_kafka: EmbeddedKafka, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = await topic_on(own_kafka, settings)
    spool = opened_spool(settings)
    async with SpooledDelivery(settings.kafka, settings.publisher, spool) as delivery:
        await until_open(delivery)
        with silent(own_kafka):
            await deliver_all(delivery, records(events(100)))
            flushing = asyncio.create_task(delivery.flush())
            await asyncio.sleep(0)

            def damaged(commit: Commit) -> Any:
                raise SpoolCorruptError("damaged")

            intercept(monkeypatch, spool, damaged)
            await delivery.deliver(records(events(101))[100])
            assert not flushing.done()
        async with asyncio.timeout(DEADLINE):
            await flushing
        assert delivery._retired == [] or not any(r.sender.pending for r in delivery._retired)
        await flush(delivery)
    assert len(counted(await log(settings))) == 101


async def test_undelivered_events_of_a_damaged_spool_are_logged_at_closing(
    own_kafka: EmbeddedKafka,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = await topic_on(own_kafka, settings)
    spool = opened_spool(settings)

    def damaged(commit: Commit) -> Any:
        raise SpoolCorruptError("damaged")

    async with SpooledDelivery(settings.kafka, settings.publisher, spool) as delivery:
        await until_open(delivery)
        with silent(own_kafka):
            await deliver_all(delivery, records(events(10)))
            intercept(monkeypatch, spool, damaged)
            await deliver_all(delivery, records(events(5)))
            assert await delivery.close() == 15
    assert "damaged_spool_undelivered" in caplog.messages
