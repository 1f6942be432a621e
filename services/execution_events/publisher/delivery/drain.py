"""Draining a spool that a process left behind."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from execution_events.publisher.delivery.spooled import SpooledDelivery
from execution_events.publisher.spool.spool import Spool
from execution_events.settings import KafkaSettings, PublisherSettings


async def drain(
    kafka: KafkaSettings,
    settings: PublisherSettings,
    spool: Spool,
    *,
    timeout: float,
    progress: Callable[[int], None],
    reassign_partitions: bool = False,
) -> int:
    """Send the pending records of `spool`, close it, and return how many remain.

    With `reassign_partitions`, records of partitions that the topic does not have are assigned to
    others. Gives up after `timeout` seconds without an acknowledgement. `progress` is called with
    the number of records acknowledged so far.
    """
    delivery = SpooledDelivery(kafka, settings, spool, reassign_partitions=reassign_partitions)
    async with delivery:
        first = pending = delivery.pending
        with suppress(TimeoutError):
            while pending:
                async with asyncio.timeout(timeout):
                    while delivery.pending == pending:
                        await delivery.progress()
                pending = delivery.pending
                progress(max(0, first - pending))
        return await delivery.close(wait=False)
