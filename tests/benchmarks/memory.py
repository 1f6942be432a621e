"""How much memory a consumer and a reader take, idle and at work."""

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
from tests.benchmarks.asks import Workload, workload
from tests.benchmarks.broker import PARTITIONS, Broker, broker
from tests.benchmarks.dataset import Dataset
from tests.benchmarks.figures import Verdict, short
from tests.benchmarks.ingest import MEMORY_BAR
from tests.benchmarks.reading import Streamed, plan, stream
from tests.benchmarks.report import Report
from tests.benchmarks.servers import Postgres
from tests.benchmarks.workload import EVENTS_OF_AN_EXECUTION
from tests.support.batches import ZSTD, produce_batch
from tests.support.configuration import configured
from tests.support.consumers import until
from tests.support.databases import Database
from tests.support.occurrences import ready
from tests.support.processes import Service

TIMES = 3
"""The second backlog is so many of the first."""
BACKLOG_BAR = 1.1
"""Of the peak with the first backlog."""
CONNECTIONS = 8

HOSTILE = 350
HOSTILE_BYTES = 900_000
"""Of records that zstd makes 14 KiB of."""

COLUMNS = ("Service", "MiB", "more than idle", "a second")


@dataclass(frozen=True)
class Consumer:
    """MiB of a consumer that has nothing to do, and what others took by number of records."""

    idle: float
    stored: Mapping[int, consuming.Sample]
    hostile: Mapping[int, float]
    """MiB at most by number of batches that hold `HOSTILE` records of `HOSTILE_BYTES`."""


@dataclass(frozen=True)
class Reader:
    """MiB of a reader that was asked for nothing, and at most under load; one with a long list."""

    idle: float
    peak: float
    lists: load.Sample
    long: Streamed


async def run(records: int, dataset: Dataset, seconds: float) -> Report:
    """Store a backlog of `records` and one of `TIMES` as many; then read lists for `seconds`."""
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
    """Store a backlog by one consumer, into a database of its own."""
    progress = Progress()
    progress.show(records, "records are produced and stored")
    settings = await kafka.topic()
    await asyncio.to_thread(recurring.produce, settings, recurring.records(records))
    expected = await asyncio.to_thread(recurring.counts, recurring.records(records))
    async with server.database() as database:
        sample = await consuming.store(server, settings, database, expected, 1)
    progress.end()
    return sample


async def _hostile(server: Postgres, kafka: Broker, batches: int) -> float:
    """MiB at most of a consumer that meets hostile records, until it has dealt with all."""
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

                await until(is_done, "the hostile records are dealt with")
                return usage.memory(service.process.pid, "VmHWM")
        finally:
            await connection.close()


async def _reader(server: Postgres, dataset: Dataset, seconds: float) -> Reader:
    """Each figure is of a process of its own."""
    progress = Progress(dataset.events)
    async with server.database() as database:
        async for stored in dataset_module.store(dataset, database):
            progress.show(stored, "events stored")
        progress.show(dataset.events, "events stored; lists are read")
        async with servers.reader(server, database) as reader:
            idle = await _idle(reader.service)
            asks = await workload(reader.address, dataset)
        peak, lists = await _load(server, database, asks, seconds)
        long = await stream(server, database, asks, None)
    progress.end()
    return Reader(idle, peak, lists, long)


async def _load(
    server: Postgres, database: Database, asks: Workload, seconds: float
) -> tuple[float, load.Sample]:
    async with servers.reader(server, database) as reader:
        sample = await load.measure(plan(server, reader, asks.lists, CONNECTIONS, seconds))
        return usage.memory(reader.pid, "VmHWM"), sample


async def _idle(service: Service) -> float:
    """MiB of a service as soon as it says that it is ready."""

    async def is_ready() -> bool:
        consuming.demand_running([service])
        port = management(service.output)
        return port is not None and (await ready(port))[0] == 200

    await until(is_ready, "the service is ready")
    return usage.memory(service.process.pid)


def management(log: str) -> int | None:
    """The port that a log says is the management's, if it does."""
    for entry in servers.entries(log):
        if "management" in entry:
            address: str = entry["management"]
            return urlsplit(address).port
    return None


def report(dataset: Dataset, consumer: Consumer, reader: Reader, seconds: float) -> Report:
    """The table of what was measured."""
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
            *(
                [
                    f"{lists}: {reader.lists.wrong:,} of {reader.lists.asked:,} answers wrong,"
                    f" {reader.lists.errors}"
                ]
                if reader.lists.wrong
                else []
            ),
            *([] if reader.long.same else ["the long list is another one"]),
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
        "Resident memory, shared libraries included, of processes of their own for each row:"
        " idle is as soon as one says that it is ready, a consumer with all partitions of an empty"
        " topic; the others are the most that it ever was, with the long list the most that was"
        " seen while it was read.",
        f"The backlogs are records of executions side by side, {recurring.RECURRENCES:.0%} of them"
        f" recurrences, in {PARTITIONS} partitions and complete before the consumer starts. Each"
        " is stored into an empty database, at full speed, and every count compared.",
        "The hostile records are invalid, and zstd makes 41 bytes of each. In one batch, which"
        " expands to 315 MB, they halt their partition; in a batch each they become dead letters.",
        f"The reader has {dataset.executions:,} executions of {EVENTS_OF_AN_EXECUTION} events to"
        f" list for {seconds} s, each another one's as in `read`, and one of"
        f" {dataset.long:,}, which one client takes at once, in {reader.long.seconds:.1f} s.",
    ]
