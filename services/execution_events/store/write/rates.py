"""Numbers of records by minute and partition, for `ops.event_rate_v1`."""

from collections.abc import Mapping
from datetime import timedelta

import asyncpg

from execution_events.projection.batch import Rate
from execution_events.store.sql import load_queries

_SQL = load_queries("pipeline")

_RETENTION = timedelta(days=14)
_PURGE_BATCH = 10_000
"""Rows deleted by one statement."""


async def add_rates(connection: asyncpg.Connection, topic: str, rates: Mapping[int, Rate]) -> None:
    """Add a batch's numbers to those of the current minute, in the caller's transaction.

    The caller has locked the partitions, so no other session writes these rows.
    """
    if rates:
        await connection.execute(
            _SQL["add_rates"],
            topic,
            list(rates),
            [rate.records for rate in rates.values()],
            [rate.occurrences for rate in rates.values()],
            [rate.dead_letters for rate in rates.values()],
        )


async def purge_rates(connection: asyncpg.Connection) -> None:
    """Delete some of the rows that are older than 14 days, if there are any."""
    await connection.execute(_SQL["purge_rates"], _RETENTION, _PURGE_BATCH)
