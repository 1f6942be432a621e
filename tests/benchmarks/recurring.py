"""Records with recurrences, and the counts that must be stored."""

import random
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

import asyncpg
import msgspec
from confluent_kafka import KafkaError, Message, Producer

from execution_events import wire
from execution_events.events import Occurrence
from execution_events.settings import Settings
from tests.benchmarks.producer import BATCH_BYTES
from tests.benchmarks.workload import (
    APART,
    BEGUN,
    CONCURRENT,
    EVENTS_OF_AN_ELEMENT,
    EVENTS_OF_AN_EXECUTION,
    occurrence,
)

RECURRENCES = 0.3
"""Share of all records."""
WORKERS = 16
"""Sources; each runs several executions concurrently."""
ELEMENTS = 10_000
_FLUSH_TIMEOUT = 120
"""Seconds."""
_SEED = 20180820

Counts = Counter[tuple[str, str]]
"""Occurrences by execution and name."""


def records(number: int, run: str = "") -> Iterator[Occurrence]:
    """Yield `number` records of concurrent executions, the same in each call.

    Each `run` has its own executions. A record is the next event of its execution or a recurrence
    of an earlier one.
    """
    choice = random.Random(_SEED)
    series = [_series(f"{run}{each}", choice) for each in range(CONCURRENT)]
    for position in range(number):
        yield next(series[position % CONCURRENT])


def _series(key: str, choice: random.Random) -> Iterator[Occurrence]:
    """Yield the records of executions one after another."""
    turn = 0
    while True:
        execution_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"recurring:{key}:{turn}"))
        events = written = 0
        while events < EVENTS_OF_AN_EXECUTION or choice.random() < RECURRENCES:
            moment = BEGUN + APART * written
            recurs = events == EVENTS_OF_AN_EXECUTION or (
                events > 0 and choice.random() < RECURRENCES
            )
            position = choice.randrange(events) if recurs else events
            events += not recurs
            written += 1
            yield msgspec.structs.replace(
                occurrence(execution_id, position), first_timestamp=moment, last_timestamp=moment
            )
        turn += 1


def loops(executions: int, number: int) -> Iterator[Occurrence]:
    """Yield concurrent crash loops: one event of each execution, with `number` occurrences."""
    ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, f"loop:{each}")) for each in range(executions)]
    events = [occurrence(execution_id, 0) for execution_id in ids]
    for turn in range(number):
        moment = BEGUN + APART * turn
        for event in events:
            yield msgspec.structs.replace(event, first_timestamp=moment, last_timestamp=moment)


def elements(executions: int, number: int) -> Iterator[Occurrence]:
    """Yield `number` records of `ELEMENTS` elements, evenly over so many executions.

    After the last event of each element, all recur.
    """
    ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, f"elements:{each}")) for each in range(executions)]
    events = ELEMENTS * EVENTS_OF_AN_ELEMENT
    for position in range(number):
        moment = BEGUN + APART * position
        event, execution = divmod(position % events, executions)
        yield msgspec.structs.replace(
            occurrence(ids[execution], event), first_timestamp=moment, last_timestamp=moment
        )


def counts(occurrences: Iterator[Occurrence]) -> Counts:
    """Return the counts that must be stored."""
    return Counter((each.execution_id, each.name) for each in occurrences)


async def stored(
    connection: asyncpg.Connection,
    table: str = "ops.events_v1",
    executions: Collection[str] | None = None,
) -> Counts:
    """Return the counts in a table or view, of all executions or of some."""
    query, given = f"SELECT execution_id, name, count FROM {table}", []
    if executions is not None:
        query, given = f"{query} WHERE execution_id = ANY ($1)", [list(executions)]
    rows = await connection.fetch(query, *given)
    return Counter({(execution_id, name): count for execution_id, name, count in rows})


def difference(expected: Counts, found: Counts) -> list[str]:
    """Describe the differences of the counts that were found; empty if there are none."""
    missing, surplus = expected - found, found - expected
    return [
        f"{wrong.total():,} occurrences {what}, of {len(wrong):,} events"
        for what, wrong in (("missing", missing), ("too many", surplus))
        if wrong
    ]


def produce(settings: Settings, occurrences: Iterable[Occurrence]) -> None:
    """Send records as publishers would, and return once Kafka has acknowledged all."""
    sources = [f"urn:uuid:{uuid.uuid4()}" for _ in range(WORKERS)]
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "zstd",
            "batch.size": BATCH_BYTES,
            "partitioner": "murmur2_random",
            "linger.ms": 20,
            # Otherwise a new broker's coordinator causes a warning.
            "log_level": 3,
        }
    )
    errors: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            errors.append(error)

    for number, each in enumerate(occurrences):
        key, value = wire.encode(each)
        headers = wire.encode_headers(sources[number % WORKERS], number // WORKERS + 1)
        while len(producer) > 50_000:
            producer.poll(0.05)
        producer.produce(settings.kafka.topic, value, key, headers=headers, on_delivery=delivered)
        producer.poll(0)
    producer.flush(_FLUSH_TIMEOUT)
    if errors:
        raise RuntimeError(f"{len(errors)} records not delivered: {errors[0]}")
