"""Memory of a consumer and a reader, idle and under load."""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import asyncpg
from msgspec import to_builtins as builtins

from execution_events.cli.progress import Progress
from tests.benchmarks import consuming, load, recurring, servers, usage
from tests.benchmarks import dataset as dataset_module
from tests.benchmarks.broker import PARTITIONS, Broker, broker
from tests.benchmarks.dataset import Dataset
from tests.benchmarks.figures import Verdict, short
from tests.benchmarks.ingest import MEMORY_BAR
from tests.benchmarks.reading import Streamed, plan, stream
from tests.benchmarks.report import Report
from tests.benchmarks.requests import RequestSets, request_sets
from tests.benchmarks.servers import Postgres
from tests.benchmarks.workload import EVENTS_OF_AN_EXECUTION
from tests.support.batches import ZSTD, produce_batch
from tests.support.configuration import configured
from tests.support.consumers import until
from tests.support.databases import Database
from tests.support.occurrences import ready
from tests.support.processes import Service

TIMES = 3
"""Ratio of the second backlog to the first."""
BACKLOG_BAR = 1.1
"""Ratio to the peak with the first backlog."""
CONNECTIONS = 8

HOSTILE = 350
"""Number of hostile records."""
HOSTILE_BYTES = 900_000
"""Size of each; one batch of all of them is 14 KiB with zstd."""

COLUMNS = ("Service", "MiB", "above idle", "a second")


@dataclass(frozen=True)
class Consumer:
    """MiB of an idle consumer and of others under load."""

    idle: float
    stored: Mapping[int, consuming.Sample]
    """By number of records."""
    hostile: Mapping[int, float]
    """Peak MiB by number of batches that hold `HOSTILE` records of `HOSTILE_BYTES`."""


@dataclass(frozen=True)
class Reader:
    """MiB of an idle reader and peak under load; the figures of a long list."""

    idle: float
    peak: float
    lists: load.Sample
    long: Streamed


async def run(records: int, dataset: Dataset, seconds: float) -> Report:
    """Store backlogs of `records` and `TIMES` as many; then read lists for `seconds`."""
    async with servers.postgres() as server:
        async with broker() as kafka:
            consumer = Consumer(
                await _idle_consumer(server, kafka),
                {
                    number: await _stored(server, kafka, number)
                    for number in (records, TIMES * records)
                },
                {batches: await _hostile(server, kafka, batches) for batches in (1, HOSTILE)},
            )
        reader = await _reader(server, dataset, seconds)
    return report(dataset, consumer, reader, seconds)


async def _idle_consumer(server: Postgres, kafka: Broker) -> float:
    async with server.database() as database:
        settings = configured(
            await kafka.topic(),
            database_url=database.writer,
            group=f"benchmark-{secrets.token_hex(4)}",
            management_port=0,
        )
        async with consuming.consuming(server, settings, 1) as [service]:
            return await _idle(service)


async def _stored(server: Postgres, kafka: Broker, records: int) -> consuming.Sample:
    """Store a backlog with one consumer in a database of its own."""
    progress = Progress()
    progress.show(records, "records to produce and store")
    settings = await kafka.topic()
    await asyncio.to_thread(recurring.produce, settings, recurring.records(records))
    expected = await asyncio.to_thread(recurring.counts, recurring.records(records))
    async with server.database() as database:
        sample = await consuming.store(server, settings, database, expected, 1)
    progress.end()
    return sample


async def _hostile(server: Postgres, kafka: Broker, batches: int) -> float:
    """Return the peak MiB of a consumer until it has stored or refused the hostile records."""
    settings = await kafka.topic()
    for _ in range(batches):
        values = [bytes(HOSTILE_BYTES)] * (HOSTILE // batches)
        await produce_batch(settings, 0, values, codec=ZSTD)
    async with server.database() as database:
        settings = configured(
            settings,
            database_url=database.writer,
            group=f"benchmark-{secrets.token_hex(4)}",
            management_port=0,
        )
        connection = await asyncpg.connect(database.owner)
        try:
            async with consuming.consuming(server, settings, 1) as [service]:

                async def is_done() -> bool:
                    consuming.demand_running([service])
                    if batches > 1:
                        letters = "SELECT count(*) FROM execution_events.dead_letter"
                        return bool(await connection.fetchval(letters) == HOSTILE)
                    port = management(service.output)
                    return port is not None and "is halted" in (await ready(port))[1]

                await until(is_done, "the hostile records are refused")
                return usage.memory(service.process.pid, "VmHWM")
        finally:
            await connection.close()


async def _reader(server: Postgres, dataset: Dataset, seconds: float) -> Reader:
    """Measure an idle reader, one under load and one with the long list, a process each."""
    progress = Progress(dataset.events)
    async with server.database() as database:
        async for stored in dataset_module.store(dataset, database):
            progress.show(stored, "events stored")
        progress.show(dataset.events, "events stored; reading lists")
        async with servers.reader(server, database) as reader:
            idle = await _idle(reader.service)
            requests = await request_sets(reader.address, dataset)
        peak, lists = await _load(server, database, requests, seconds)
        long = await stream(server, database, requests, None)
    progress.end()
    return Reader(idle, peak, lists, long)


async def _load(
    server: Postgres, database: Database, requests: RequestSets, seconds: float
) -> tuple[float, load.Sample]:
    async with servers.reader(server, database) as reader:
        sample = await load.measure(plan(server, reader, requests.lists, CONNECTIONS, seconds))
        return usage.memory(reader.pid, "VmHWM"), sample


async def _idle(service: Service) -> float:
    """Return the MiB of a service as soon as it is ready."""

    async def is_ready() -> bool:
        consuming.demand_running([service])
        port = management(service.output)
        return port is not None and (await ready(port))[0] == 200

    await until(is_ready, "the service is ready")
    return usage.memory(service.process.pid)


def management(log: str) -> int | None:
    """Return the management port in a log, or None."""
    for entry in servers.entries(log):
        if "management" in entry:
            address: str = entry["management"]
            return urlsplit(address).port
    return None


def report(dataset: Dataset, consumer: Consumer, reader: Reader, seconds: float) -> Report:
    """Return the table of the samples."""
    (records, once), (_, more) = consumer.stored.items()
    long = reader.long.before + reader.long.grown
    lists = f"reader, lists over {CONNECTIONS} connections"
    return Report(
        "memory",
        {
            "records": records,
            "executions": dataset.executions,
            "events": EVENTS_OF_AN_EXECUTION,
            "long": dataset.long,
            "seconds": seconds,
            "partitions": PARTITIONS,
        },
        COLUMNS,
        [
            _row("consumer, idle", consumer.idle),
            *(
                _row(f"consumer, stores {number:,} records", each.peak, consumer.idle, each.rate)
                for number, each in consumer.stored.items()
            ),
            *(
                _row(f"consumer, {HOSTILE} records of 900 kB in {number} batches", each)
                for number, each in consumer.hostile.items()
            ),
            _row("reader, idle", reader.idle),
            _row(lists, reader.peak, reader.idle, reader.lists.rate),
            _row(f"reader, one list of {dataset.long:,} events", long, reader.idle),
        ],
        [
            Verdict(
                "memory of a consumer", max(once.peak, more.peak), MEMORY_BAR, "MiB", at_most=True
            ),
            Verdict(
                "memory of a consumer with hostile records",
                max(consumer.hostile.values()),
                MEMORY_BAR,
                "MiB",
                at_most=True,
            ),
            Verdict(
                "peak with three times the backlog",
                more.peak / once.peak,
                BACKLOG_BAR,
                at_most=True,
            ),
        ],
        _notes(dataset, reader, seconds),
        {"consumer": builtins(consumer, str_keys=True), "reader": builtins(reader)},
        [
            *(
                f"{number:,} records: {wrong}"
                for number, each in consumer.stored.items()
                for wrong in each.wrong
            ),
            *([f"{lists}: {reader.lists.failure}"] if reader.lists.wrong else []),
            *([] if reader.long.same else ["the long list is wrong"]),
        ],
    )


def _row(
    title: str, memory: float, idle: float | None = None, rate: float | None = None
) -> tuple[str, ...]:
    return (
        title,
        f"{memory:.0f}",
        "" if idle is None else str(round(memory - idle)),
        "" if rate is None else short(round(rate)),
    )


def _notes(dataset: Dataset, reader: Reader, seconds: float) -> list[str]:
    return [
        "Resident memory, shared libraries included. Each row is a process of its own. Idle is"
        " measured as soon as the service is ready, the consumer's with all partitions of an empty"
        " topic. The other rows are the process's peak, that of the long list the highest value"
        " seen while it was read.",
        f"The backlogs are records of concurrent executions, {recurring.RECURRENCES:.0%} of them"
        f" recurrences, in {PARTITIONS} partitions and complete before the consumer starts. Each"
        " is stored in an empty database at full speed, and every count is compared.",
        "The hostile records are invalid and compressed to 41 bytes each. One batch of all of them"
        " expands to 315 MB and halts its partition; in batches of one they become dead letters.",
        f"The reader lists {dataset.executions:,} executions of {EVENTS_OF_AN_EXECUTION} events for"
        f" {seconds} s, each request another execution as in `read`, and one of {dataset.long:,}"
        f" events, which one client receives at full speed in {reader.long.seconds:.1f} s.",
    ]
