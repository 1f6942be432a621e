"""Delivery through a spool, and intercepted commits of it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from execution_events.errors import RetryableError
from execution_events.publisher.delivery.spooled import SpooledDelivery
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.directory import open_spool
from execution_events.publisher.spool.spool import Spool
from execution_events.settings import Settings
from tests.support.consumers import DEADLINE
from tests.support.published import (
    events,
    nothing_left,
    records,
)


def directory_of(settings: Settings) -> Path:
    assert settings.publisher.spool_dir is not None
    return Path(settings.publisher.spool_dir)


def opened_spool(settings: Settings) -> Spool:
    return open_spool(directory_of(settings), settings.publisher.spool_max_bytes)


@asynccontextmanager
async def delivering(settings: Settings) -> AsyncIterator[SpooledDelivery]:
    async with (
        nothing_left(),
        SpooledDelivery(settings.kafka, settings.publisher, opened_spool(settings)) as delivery,
    ):
        yield delivery
    assert not [t for t in threading.enumerate() if t.name.startswith("execution-events-spool")]


async def deliver_all(delivery: SpooledDelivery, new: Sequence[PendingRecord]) -> None:
    await asyncio.gather(*map(delivery.deliver, new))


async def flush(delivery: SpooledDelivery) -> None:
    async with asyncio.timeout(DEADLINE):
        await delivery.flush()


async def until_open(delivery: SpooledDelivery) -> None:
    """Return once the delivery is connected."""
    async with asyncio.timeout(DEADLINE):
        await delivery._sender.until_connected()


async def attempt(call: Awaitable[None]) -> RetryableError | None:
    try:
        await call
    except RetryableError as error:
        return error
    return None


def big(number: int) -> list[PendingRecord]:
    """Return `number` records of 16 KiB."""
    return records(msgspec.structs.replace(e, message="x" * 16384) for e in events(number))


class Commit(NamedTuple):
    """An intercepted commit: the spool's own method, and the new records."""

    run: Callable[[], Any]
    new: Sequence[PendingRecord]


def intercept(
    monkeypatch: pytest.MonkeyPatch, spool: Spool, replacement: Callable[[Commit], Any]
) -> None:
    """Call `replacement` instead of the commits of `spool`."""
    commit = spool.commit

    def intercepted(
        new: Sequence[PendingRecord], acknowledged: Sequence[int], **options: Any
    ) -> Any:
        return replacement(Commit(lambda: commit(new, acknowledged, **options), new))

    monkeypatch.setattr(spool, "commit", intercepted)
