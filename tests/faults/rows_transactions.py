"""A worker with transactions: aborted records must not count, and offsets have gaps."""

import asyncio

from tests.faults.episode import Episode, Row
from tests.faults.rows_consumer import kill_at_any, killed_at_its_point
from tests.faults.rows_kafka import kill_broker

_LOAD = 2
"""Seconds of transactions before the fault."""


async def _kill_consumer(episode: Episode) -> None:
    await killed_at_its_point(episode)
    await episode.until_moving()


async def _kill_broker(episode: Episode) -> None:
    await asyncio.sleep(_LOAD)
    await kill_broker(episode)


ROWS = (
    Row(
        "transactions",
        "Some transactions aborted; SIGKILL a consumer at any fail point",
        10,
        _kill_consumer,
        transactions=True,
        first_fail_point=kill_at_any,
    ),
    Row(
        "transactions-broker",
        "Some transactions aborted; SIGKILL the broker",
        5,
        _kill_broker,
        transactions=True,
        alone=True,
    ),
)
