"""Consumer processes and the rate at which they store a topic."""

import asyncio
import secrets
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import asyncpg

from execution_events.settings import Settings
from tests.benchmarks import recurring, servers, usage
from tests.benchmarks.recurring import Counts
from tests.benchmarks.servers import Postgres
from tests.benchmarks.trees import THIS, Tree
from tests.support import databases
from tests.support.configuration import configured
from tests.support.databases import Database
from tests.support.processes import Service, environment

_POLL_INTERVAL = 0.02
"""Seconds between two reads of the stored offsets."""
_TIMEOUT = 600
"""Seconds until all must be stored."""


@dataclass(frozen=True)
class Sample:
    """The cost of storing a topic: seconds, MiB, and seconds of CPU of all threads.

    `rate` covers the time from the first stored offset to the last and leaves out the records
    before the first; `total` begins when the processes are started.
    """

    rate: float
    """Records a second."""
    total: float
    cpu: float
    """Of all consumers together."""
    postgres_cpu: float
    peak: float
    """Of the consumer with the highest."""
    wrong: list[str]


@dataclass(frozen=True)
class Moment:
    """The number of stored records at a time of the monotonic clock."""

    time: float
    stored: int


async def migrate(database: Database, tree: Tree = THIS) -> None:
    """Create a tree's schema in an empty database."""
    settings = configured(
        database_url=database.owner,
        writer_password=databases.PASSWORD,
        reader_password=databases.PASSWORD,
        ops_password=databases.PASSWORD,
    )
    if tree is not THIS:
        # Earlier commits call functions that PostgreSQL permits everybody and this one revokes.
        async with databases.administrator(database.administrator) as connection:
            await connection.execute(
                "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pg_catalog TO PUBLIC"
            )
    process = await asyncio.create_subprocess_exec(
        *tree.command, "migrate", stdout=subprocess.DEVNULL, env=environment(settings)
    )
    if code := await process.wait():
        raise RuntimeError(f"migrate ended with exit code {code}")


@asynccontextmanager
async def database(postgres: Postgres, tree: Tree = THIS) -> AsyncIterator[Database]:
    """Create an empty database with a tree's schema; drop it at the end."""
    async with databases.empty(postgres.administrator_url) as found:
        await migrate(found, tree)
        yield found


async def stored(connection: asyncpg.Connection, topic: str) -> int:
    """Count the stored records of a topic whose log begins at 0 and has no gaps."""
    number: int = await connection.fetchval(
        # The view of an earlier tree may have other columns.
        "SELECT coalesce(sum(next_offset), 0)::bigint FROM execution_events.partition_progress"
        " WHERE topic = $1",
        topic,
    )
    return number


@asynccontextmanager
async def consuming(
    postgres: Postgres, settings: Settings, number: int, tree: Tree = THIS
) -> AsyncIterator[list[Service]]:
    """Run `number` consumers of one group."""
    env = environment(settings, EXECUTION_EVENTS_LOG_FORMAT="json")
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                Service((*tree.command, "consumer"), postgres.log("consumer"), env)
            )
            for _ in range(number)
        ]


def demand_running(services: Sequence[Service]) -> None:
    """Raise `RuntimeError` if one has ended."""
    for service in services:
        if service.process.returncode is not None:
            raise RuntimeError(f"a service has ended:\n{service.output}")


def assigned(log: str) -> list[int]:
    """Return the partitions of the last assignment in a consumer's log; none before the first."""
    held: list[int] = []
    for entry in servers.entries(log):
        if entry["event"] == "partitions_assigned":
            held = entry["partitions"]
    return held


async def measure(
    postgres: Postgres,
    settings: Settings,
    database: Database,
    records: int,
    consumers: int,
    tree: Tree = THIS,
) -> Sample:
    """Start consumers and wait until all records are stored; leave `wrong` empty."""
    connection = await asyncpg.connect(database.owner)
    begun, postgres_before = time.monotonic(), postgres.cpu
    try:
        async with consuming(postgres, settings, consumers, tree) as services:
            moments = await _until_stored(connection, settings.kafka.topic, records, services)
            pids = [service.process.pid for service in services]
            return Sample(
                rate=rate(moments),
                total=moments[-1].time - begun,
                cpu=sum(map(usage.cpu, pids)),
                postgres_cpu=postgres.cpu - postgres_before,
                peak=max(usage.memory(pid, "VmHWM") for pid in pids),
                wrong=[],
            )
    finally:
        await connection.close()


async def store(
    postgres: Postgres,
    settings: Settings,
    database: Database,
    expected: Counts,
    consumers: int,
    tree: Tree = THIS,
) -> Sample:
    """Store a topic in an empty database with a group of its own, and compare every count."""
    settings = configured(
        settings,
        database_url=database.writer,
        group=f"benchmark-{secrets.token_hex(4)}",
        management_port=0,
    )
    sample = await measure(postgres, settings, database, expected.total(), consumers, tree)
    connection = await asyncpg.connect(database.owner)
    try:
        found = await recurring.stored(connection)
    finally:
        await connection.close()
    return replace(sample, wrong=recurring.difference(expected, found))


def rate(moments: Sequence[Moment]) -> float:
    """Return records a second from the first moment to the last; one moment is one interval."""
    first, last = moments[0], moments[-1]
    if first == last:
        return last.stored / _POLL_INTERVAL
    return (last.stored - first.stored) / (last.time - first.time)


async def _until_stored(
    connection: asyncpg.Connection, topic: str, records: int, services: Sequence[Service]
) -> list[Moment]:
    moments: list[Moment] = []
    async with asyncio.timeout(_TIMEOUT):
        while not moments or moments[-1].stored < records:
            demand_running(services)
            now = await stored(connection, topic)
            if now and (not moments or now != moments[-1].stored):
                moments.append(Moment(time.monotonic(), now))
            await asyncio.sleep(_POLL_INTERVAL)
    return moments
