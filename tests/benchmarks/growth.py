"""Effect of stored events, more consumers and crash loops on the consumer's and reader's rates."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import asyncpg

from execution_events.cli.progress import Progress
from execution_events.settings import Settings
from execution_events.store.connection import fetch_one
from tests.benchmarks import consuming, filler, growth_report, load, recurring, servers
from tests.benchmarks.broker import Broker, broker
from tests.benchmarks.dataset import Dataset, path
from tests.benchmarks.growth_report import (
    LISTS,
    LOOPS,
    ONE,
    READ_CONNECTIONS,
    THREE,
    TWO,
    VARIANTS,
    Found,
    Loops,
    Mixed,
    Variant,
    Work,
)
from tests.benchmarks.reading import plan
from tests.benchmarks.recurring import Counts
from tests.benchmarks.report import Report
from tests.benchmarks.requests import of_events, uncached
from tests.benchmarks.servers import Postgres
from tests.benchmarks.worker import measured
from tests.benchmarks.workload import EVENTS_OF_AN_EXECUTION
from tests.support.configuration import configured
from tests.support.databases import Database, administrator
from tests.support.processes import environment

_SEED = 20180820


@dataclass
class Filled:
    """A database with a dataset, and the counts added to it since."""

    dataset: Dataset
    database: Database
    added: Counts


async def run(
    events: int, sizes: Sequence[float], loop: int, rounds: int, seconds: float
) -> Report:
    """Read from and store into a database of each size in millions; then into empty ones.

    `events` is the number of records of mixed work, `loop` that of occurrences of each crash loop,
    `seconds` the length of a run of reads.
    """
    datasets = [
        Dataset(max(1, round(size * 1e6 / EVENTS_OF_AN_EXECUTION)), long=0)
        for size in sorted(set(sizes))
    ]
    found = Found()
    async with (
        servers.postgres(**growth_report.SERVER) as server,
        broker() as kafka,
        AsyncExitStack() as stack,
    ):
        filled = [
            Filled(each, await stack.enter_async_context(_filled(server, each)), Counts())
            for each in datasets
        ]
        await _read(server, filled, found, rounds, seconds)
        await _grown(server, kafka, filled, found, events, rounds)
        await _bare(server, kafka, found, events, loop, rounds)
    sizes_stored = [each.dataset.events for each in filled]
    return growth_report.report(found, sizes_stored, events, loop, rounds, seconds)


@asynccontextmanager
async def _filled(server: Postgres, dataset: Dataset) -> AsyncIterator[Database]:
    async with server.database() as database:
        answer = await measured(
            *("-m", filler.__name__, str(dataset.executions)),
            env=environment(configured(database_url=database.writer)),
        )
        if answer["stored"] != dataset.events:
            raise RuntimeError(f"{answer['stored']} of {dataset.events} events are stored")
        async with administrator(database.administrator) as connection:
            # Visibility map and statistics as in a database in use.
            await connection.execute("VACUUM ANALYZE")
            await connection.execute("CHECKPOINT")
        yield database


async def _read(
    server: Postgres, filled: Sequence[Filled], found: Found, rounds: int, seconds: float
) -> None:
    """Read lists of each size once a round; every other round runs backwards."""
    progress = Progress(rounds * len(filled))
    requests = {each.dataset: _requests(each.dataset) for each in filled}
    sent = dict.fromkeys(requests, 0)
    for number in range(rounds):
        for each in filled[:: -1 if number % 2 else 1]:
            size = each.dataset.events
            progress.show(sum(map(len, found.reads.values())), f"runs; reading of {size:,} events")
            async with servers.reader(
                server, each.database, reader_max_requests_per_token=2 * READ_CONNECTIONS
            ) as reader:
                sample = await load.measure(
                    plan(
                        server,
                        reader,
                        requests[each.dataset],
                        READ_CONNECTIONS,
                        seconds,
                        sent[each.dataset] % len(requests[each.dataset]),
                    )
                )
            sent[each.dataset] += sample.sent
            found.reads.setdefault(size, []).append(sample)
    progress.end()


def _requests(dataset: Dataset) -> list[load.Request]:
    """Return uncached requests for the lists of some executions, in random order."""
    number = min(LISTS, dataset.executions)
    chosen = random.Random(_SEED).sample(range(dataset.executions), number)
    return uncached([of_events(path(each), dataset.listed(each)) for each in chosen])


async def _grown(
    server: Postgres,
    kafka: Broker,
    filled: Sequence[Filled],
    found: Found,
    events: int,
    rounds: int,
) -> None:
    """Store with one consumer into each size once a round; each round has its own records."""
    progress = Progress(rounds * len(filled))
    for number in range(rounds):
        settings, counts = await _produced(kafka, Mixed(events, f"round {number} "))
        for each in filled[:: -1 if number % 2 else 1]:
            size = each.dataset.events
            progress.show(sum(map(len, found.grown.values())), f"runs; storing after {size:,}")
            sample = await _store(server, settings, each, counts, 1)
            found.grown.setdefault(size, []).append(sample)
    progress.end()


async def _bare(
    server: Postgres, kafka: Broker, found: Found, events: int, loop: int, rounds: int
) -> None:
    """Store mixed work and crash loops, each time into an empty database."""
    progress = Progress(rounds * len(VARIANTS))
    works: list[tuple[Work, tuple[Variant, ...]]] = [
        (Mixed(events), (ONE, TWO, THREE)),
        *((Loops(each.loops, loop), (each,)) for each in LOOPS),
    ]
    topics = [(await _produced(kafka, work), variants) for work, variants in works]
    turns = [(topic, variant) for topic, variants in topics for variant in variants]
    for number in range(rounds):
        for (settings, counts), variant in turns[:: -1 if number % 2 else 1]:
            progress.show(sum(map(len, found.bare.values())), f"runs; {variant.title}")
            async with server.database() as database:
                empty = Filled(Dataset(0, long=0), database, Counts())
                sample = await _store(server, settings, empty, counts, variant.consumers)
            found.bare.setdefault(variant.key, []).append(sample)
    progress.end()


async def _produced(kafka: Broker, work: Work) -> tuple[Settings, Counts]:
    """Produce `work` into a topic of its own; return its settings and the expected counts."""
    settings = await kafka.topic()
    await asyncio.to_thread(recurring.produce, settings, work.records())
    return settings, await asyncio.to_thread(recurring.counts, work.records())


async def _store(
    server: Postgres, settings: Settings, filled: Filled, counts: Counts, consumers: int
) -> consuming.Sample:
    """Store a topic in a filled database, and compare every count."""
    async with administrator(server.administrator_url) as connection:
        # Otherwise this run would pay for writes that the last one left.
        await connection.execute("CHECKPOINT")
    settings = configured(
        settings,
        database_url=filled.database.writer,
        group=f"benchmark-{secrets.token_hex(4)}",
        management_port=0,
    )
    sample = await consuming.measure(server, settings, filled.database, counts.total(), consumers)
    filled.added += counts
    connection = await asyncpg.connect(filled.database.owner)
    try:
        executions = {execution_id for execution_id, _ in counts}
        stored = await recurring.stored(connection, executions=executions)
        rows, occurrences = await fetch_one(
            connection,
            "SELECT count(*), coalesce(sum(count), 0)::bigint FROM execution_events.event",
        )
    finally:
        await connection.close()
    due = tuple(filled.dataset.events + more for more in (len(filled.added), filled.added.total()))
    wrong = recurring.difference(counts, stored)
    if (rows, occurrences) != due:
        wrong.append(
            f"{rows:,} rows with {occurrences:,} occurrences, expected {due[0]:,} with {due[1]:,}"
        )
    return replace(sample, wrong=wrong)
