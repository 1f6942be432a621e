"""Memory of a consumer and a reader, idle and under load."""

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit

import asyncpg
from msgspec import to_builtins as builtins

from execution_events.cli.progress import Progress
from execution_events.settings import Settings
from tests.benchmarks import consuming, load, recurring, servers, targets, trees, usage
from tests.benchmarks.broker import PARTITIONS, Broker, broker
from tests.benchmarks.dataset import Dataset
from tests.benchmarks.figures import Verdict, short
from tests.benchmarks.ingest import MEMORY_BAR
from tests.benchmarks.reading import Streamed, plan, stream
from tests.benchmarks.recurring import Counts
from tests.benchmarks.report import Report
from tests.benchmarks.requests import RequestSets, request_sets
from tests.benchmarks.servers import Postgres
from tests.benchmarks.trees import COST_BAR, THIS, Tree
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


class Services(NamedTuple):
    """Figures of one round of a tree."""

    consumer: Consumer
    reader: Reader


class Topics(NamedTuple):
    """Settings for topics that are filled once and stored by each consumer."""

    empty: Settings
    backlogs: dict[int, tuple[Settings, Counts]]
    """By number of records."""
    hostile: dict[int, Settings]
    """By number of batches."""


async def run(
    records: int, dataset: Dataset, seconds: float, rounds: int = 1, tree: Tree | None = None
) -> Report:
    """Store backlogs of `records` and `TIMES` as many, then read lists for `seconds`, once a round.

    With `tree`, its services run in turn with this tree's, on the same servers.
    """
    compared = [each for each in (THIS, tree) if each is not None]
    consumers: dict[Tree, list[Consumer]] = {each: [] for each in compared}
    readers: dict[Tree, list[Reader]] = {each: [] for each in compared}
    progress = Progress(rounds)
    async with servers.postgres() as server:
        async with broker() as kafka:
            progress.show(0, "rounds; producing records")
            topics = await _topics(kafka, records)
            for number in range(rounds):
                progress.show(number, "rounds of consumers")
                for each in trees.in_turn(compared, number):
                    consumers[each].append(await _consumer(server, topics, each))
        async with AsyncExitStack() as stack:
            progress.show(0, "rounds; storing executions to read")
            databases = {
                each: await stack.enter_async_context(targets.filled(server, dataset, each))
                for each in compared
            }
            for number in range(rounds):
                progress.show(number, "rounds of readers")
                for each in trees.in_turn(compared, number):
                    readers[each].append(
                        await _reader(server, databases[each], dataset, seconds, each)
                    )
    progress.end()
    ours, *others = (
        [Services(*both) for both in zip(consumers[each], readers[each], strict=True)]
        for each in compared
    )
    return report(dataset, ours, others[0] if others else [], seconds)


async def _topics(kafka: Broker, records: int) -> Topics:
    topics = Topics(await kafka.topic(), {}, {})
    for number in (records, TIMES * records):
        settings = await kafka.topic()
        await asyncio.to_thread(recurring.produce, settings, recurring.records(number))
        expected = await asyncio.to_thread(recurring.counts, recurring.records(number))
        topics.backlogs[number] = (settings, expected)
    for batches in (1, HOSTILE):
        settings = topics.hostile[batches] = await kafka.topic()
        for _ in range(batches):
            values = [bytes(HOSTILE_BYTES)] * (HOSTILE // batches)
            await produce_batch(settings, 0, values, codec=ZSTD)
    return topics


async def _consumer(server: Postgres, topics: Topics, tree: Tree) -> Consumer:
    """Measure consumers, each in a database and a group of its own."""
    return Consumer(
        await _idle_consumer(server, topics.empty, tree),
        {
            number: await _stored(server, settings, expected, tree)
            for number, (settings, expected) in topics.backlogs.items()
        },
        {
            batches: await _hostile(server, settings, batches, tree)
            for batches, settings in topics.hostile.items()
            # An earlier consumer need not refuse these records, or tell so with the same words.
            if tree is THIS
        },
    )


def _alone(settings: Settings, database: Database) -> Settings:
    return configured(
        settings,
        database_url=database.writer,
        group=f"benchmark-{secrets.token_hex(4)}",
        management_port=0,
    )


async def _idle_consumer(server: Postgres, settings: Settings, tree: Tree) -> float:
    async with (
        consuming.database(server, tree) as database,
        consuming.consuming(server, _alone(settings, database), 1, tree) as [service],
    ):
        return await _idle(service)


async def _stored(
    server: Postgres, settings: Settings, expected: Counts, tree: Tree
) -> consuming.Sample:
    async with consuming.database(server, tree) as database:
        return await consuming.store(server, settings, database, expected, 1, tree)


async def _hostile(server: Postgres, settings: Settings, batches: int, tree: Tree) -> float:
    """Return the peak MiB of a consumer until it has stored or refused the hostile records."""
    async with consuming.database(server, tree) as database:
        settings = _alone(settings, database)
        connection = await asyncpg.connect(database.owner)
        try:
            async with consuming.consuming(server, settings, 1, tree) as [service]:

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


async def _reader(
    server: Postgres, database: Database, dataset: Dataset, seconds: float, tree: Tree
) -> Reader:
    """Measure an idle reader, one under load and one with the long list, a process each."""
    async with servers.reader(server, database, tree) as reader:
        idle = await _idle(reader.service)
        requests = await request_sets(reader.address, dataset)
    peak, lists = await _load(server, database, requests, seconds, tree)
    return Reader(idle, peak, lists, await stream(server, database, requests, None, tree))


async def _load(
    server: Postgres, database: Database, requests: RequestSets, seconds: float, tree: Tree
) -> tuple[float, load.Sample]:
    async with servers.reader(server, database, tree) as reader:
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


class Figure(NamedTuple):
    """A row of the table: MiB, those of the idle service, and the rate meanwhile."""

    memory: float
    idle: float | None = None
    rate: float | None = None


def _figures(services: Services, long: int) -> dict[str, Figure]:
    """Return the rows of a round by title."""
    consumer, reader = services
    return {
        "consumer, idle": Figure(consumer.idle),
        **{
            f"consumer, stores {number:,} records": Figure(each.peak, consumer.idle, each.rate)
            for number, each in consumer.stored.items()
        },
        **{
            f"consumer, {HOSTILE} records of 900 kB in {number} batches": Figure(each)
            for number, each in consumer.hostile.items()
        },
        "reader, idle": Figure(reader.idle),
        _LISTS: Figure(reader.peak, reader.idle, reader.lists.rate),
        f"reader, one list of {long:,} events": Figure(
            reader.long.before + reader.long.grown, reader.idle
        ),
    }


_LISTS = f"reader, lists over {CONNECTIONS} connections"


def report(
    dataset: Dataset, ours: Sequence[Services], others: Sequence[Services], seconds: float
) -> Report:
    """Return the table of the rounds of this tree and, if there are any, of another."""
    rows: list[tuple[str, ...]] = []
    compared: list[Verdict] = []
    rounds = [[_figures(each, dataset.long) for each in tree] for tree in (ours, others)]
    for title in rounds[0][0]:
        mine, theirs = ([each[title] for each in tree if title in each] for tree in rounds)
        rows.append(_row(title, mine))
        if theirs:
            rows.append(_row(trees.OTHER_TITLE, theirs))
            memory, other = ([each.memory for each in tree] for tree in (mine, theirs))
            compared.append(trees.verdict(title, memory, other, COST_BAR, at_most=True))
    return Report(
        "memory",
        {
            "records": min(ours[0].consumer.stored),
            "executions": dataset.executions,
            "events": EVENTS_OF_AN_EXECUTION,
            "long": dataset.long,
            "seconds": seconds,
            "rounds": len(ours),
            "partitions": PARTITIONS,
        },
        COLUMNS,
        rows,
        [*_verdicts([each.consumer for each in ours]), *compared],
        _notes(dataset, ours[0].reader, seconds),
        {
            "ours": builtins(ours, str_keys=True),
            "others": builtins(others, str_keys=True),
        },
        [wrong for each in (*ours, *others) for wrong in _broken(each)],
    )


def _verdicts(consumers: Sequence[Consumer]) -> list[Verdict]:
    stored = [[sample.peak for sample in each.stored.values()] for each in consumers]
    hostile = [peak for each in consumers for peak in each.hostile.values()]
    return [
        Verdict("memory of a consumer", max(map(max, stored)), MEMORY_BAR, "MiB", at_most=True),
        Verdict(
            *("memory of a consumer with hostile records", max(hostile), MEMORY_BAR, "MiB"),
            at_most=True,
        ),
        Verdict(
            "peak with three times the backlog",
            median(more / once for once, more in stored),
            BACKLOG_BAR,
            at_most=True,
        ),
    ]


def _broken(services: Services) -> Iterator[str]:
    consumer, reader = services
    for number, each in consumer.stored.items():
        yield from (f"{number:,} records: {wrong}" for wrong in each.wrong)
    if reader.lists.wrong:
        yield f"{_LISTS}: {reader.lists.failure}"
    if not reader.long.same:
        yield "the long list is wrong"


def _row(title: str, found: Sequence[Figure]) -> tuple[str, ...]:
    memory = median(each.memory for each in found)
    idle = [each.idle for each in found if each.idle is not None]
    rate = [each.rate for each in found if each.rate is not None]
    return (
        title,
        f"{memory:.0f}",
        str(round(memory - median(idle))) if idle else "",
        short(round(median(rate))) if rate else "",
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
