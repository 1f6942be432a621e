"""Published and counted occurrences; `execution-<number>` has one event of one per record."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import asyncpg
from aiokafka import AIOKafkaProducer

from execution_events import wire
from execution_events.settings import Settings
from tests.support.records import occurrence

Fetch = Callable[[str], Awaitable[list[asyncpg.Record]]]
"""A function that runs a query as the owner of the database."""


@asynccontextmanager
async def producer(settings: Settings, **options: object) -> AsyncIterator[AIOKafkaProducer]:
    """A producer with `acks=all`."""
    client = AIOKafkaProducer(
        bootstrap_servers=settings.kafka.bootstrap_servers, acks="all", **options
    )
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def publish(settings: Settings, executions: Iterable[int]) -> None:
    """Publish one record for each number; return when all are acknowledged."""
    async with producer(settings) as client:
        sent = []
        for number in executions:
            key, value = wire.encode(occurrence(execution_id=f"execution-{number}"))
            sent.append(await client.send(settings.kafka.topic, key=key, value=value))
        await asyncio.gather(*sent)


async def counts(fetch: Fetch) -> Counter[int]:
    """Return the stored count of each number."""
    rows = await fetch("SELECT execution_id, count FROM event")
    return Counter({int(row["execution_id"].rpartition("-")[2]): row["count"] for row in rows})


async def ready(port: int) -> tuple[int, str]:
    """Return status and body of /readyz; 0 and "" while the port is closed."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return 0, ""
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]
