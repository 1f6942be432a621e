"""Reading while a consumer stores records at full speed."""

import asyncio
from dataclasses import dataclass

import asyncpg

from tests.benchmarks import consuming, recurring
from tests.benchmarks.broker import broker
from tests.benchmarks.load import Plan, Sample, measure
from tests.benchmarks.servers import Postgres
from tests.benchmarks.trees import THIS, Tree
from tests.support.configuration import configured
from tests.support.consumers import until
from tests.support.databases import Database

RATE = 40_000
"""Records produced for each second of reading."""


@dataclass(frozen=True)
class Contention:
    """Reads during consumption at `records` a second; `throughout` if it lasted to the end."""

    sample: Sample
    records: float
    throughout: bool


async def contend(
    server: Postgres, database: Database, plan: Plan, tree: Tree = THIS
) -> Contention:
    """Read while one consumer of a tree stores a topic of its own."""
    connection = await asyncpg.connect(database.owner)
    try:
        async with broker() as kafka:
            settings = configured(
                await kafka.topic(), database_url=database.writer, management_port=0
            )
            number = int(RATE * (plan.warm + plan.seconds))
            records = list(recurring.records(number, settings.kafka.topic))
            await asyncio.to_thread(recurring.produce, settings, records)

            async def begun() -> bool:
                return await consuming.stored(connection, settings.kafka.topic) > 0

            async with consuming.consuming(server, settings, 1, tree):
                await until(begun, "the consumer stores records")
                before = await consuming.stored(connection, settings.kafka.topic)
                clock = asyncio.get_running_loop().time()
                sample = await measure(plan)
                seconds = asyncio.get_running_loop().time() - clock
                after = await consuming.stored(connection, settings.kafka.topic)
    finally:
        await connection.close()
    return Contention(sample, (after - before) / seconds, after < len(records))
