"""Consumers in this process, and waiting for them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from execution_events.consumer.service import run_consumer
from execution_events.settings import Settings

DEADLINE = 120
"""Timeout in seconds of anything a test waits for."""


@asynccontextmanager
async def consuming(settings: Settings) -> AsyncIterator[None]:
    """Run a consumer; at the end, stop it and raise its error, if any."""
    stop = asyncio.Event()
    consumer = asyncio.create_task(run_consumer(settings, stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE):
            await consumer


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Return once `condition` holds."""
    try:
        async with asyncio.timeout(DEADLINE):
            while not await condition():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE} s: {what}") from None


async def until_stored(settings: Settings) -> None:
    """Return once all records now in the topic are stored."""
    ends = await end_offsets(settings)

    async def stored() -> bool:
        return await stored_offsets(settings) == ends

    await until(stored, f"stored up to {ends}")


async def end_offsets(settings: Settings) -> dict[int, int]:
    """Return the last stable offset of each partition."""
    client = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka.bootstrap_servers, isolation_level="read_committed"
    )
    await client.start()
    try:
        # The client loads the metadata of a topic on demand.
        await client._client._wait_on_metadata(settings.kafka.topic)
        partitions = client.partitions_for_topic(settings.kafka.topic)
        ends = await client.end_offsets(
            [TopicPartition(settings.kafka.topic, p) for p in partitions]
        )
        return {partition.partition: offset for partition, offset in ends.items()}
    finally:
        await client.stop()


async def stored_offsets(settings: Settings) -> dict[int, int]:
    """Return the stored next offset of each partition."""
    connection = await asyncpg.connect(settings.database.require_url())
    try:
        return await next_offsets(connection, settings.kafka.topic)
    finally:
        await connection.close()


async def next_offsets(connection: asyncpg.Connection, topic: str) -> dict[int, int]:
    """Return the stored next offset of each partition of a topic."""
    rows = await connection.fetch(
        "SELECT partition, next_offset FROM execution_events.partition_progress WHERE topic = $1",
        topic,
    )
    return {row["partition"]: row["next_offset"] for row in rows}
