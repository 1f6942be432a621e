"""Executions to list, in the product's tables and in a plain one, and their expected lists."""

import json
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from execution_events.events import Occurrence
from execution_events.store.write.batches import BatchWriter
from tests.benchmarks.reference import COLUMNS, create_table
from tests.benchmarks.workload import BEGUN, CONCURRENT, EVENTS_OF_AN_EXECUTION, occurrence
from tests.support import records
from tests.support.databases import Database, administrator

TABLE = "plain_event"
_TOPIC = "dataset"
"""Topic of the stored records; it does not exist in Kafka."""
_BATCH = 10_000
"""Records of a transaction: the consumer's limit."""
_STAGGER = timedelta(seconds=7)
"""Between the beginnings of two executions, so that their times differ."""


@dataclass(frozen=True)
class Dataset:
    """`executions` of `EVENTS_OF_AN_EXECUTION` events each, and one more of `long` events."""

    executions: int
    long: int

    @property
    def events(self) -> int:
        return self.executions * EVENTS_OF_AN_EXECUTION + self.long

    def listed(self, number: int) -> list[Occurrence]:
        """Return an execution's events in the order of lists; the long one has the last number."""
        length = self.long if number == self.executions else EVENTS_OF_AN_EXECUTION
        begun = BEGUN + _STAGGER * number
        return [occurrence(execution_id(number), each, begun=begun) for each in range(length)]

    def occurrences(self) -> Iterator[Occurrence]:
        """Yield all events, interleaved between executions; the long one's come last."""
        for first in range(0, self.executions, CONCURRENT):
            numbers = range(first, min(first + CONCURRENT, self.executions))
            for events in zip(*map(self.listed, numbers), strict=True):
                yield from events
        yield from self.listed(self.executions)


def execution_id(number: int) -> str:
    """Return the id of an execution; consecutive numbers have unrelated ids."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"dataset:{number}"))


def path(number: int) -> str:
    """Return the path of an execution's list."""
    return f"/v1/executions/{execution_id(number)}/events"


def body(events: Iterable[Occurrence]) -> bytes:
    """Return events as the API must write them, encoded without the product's code."""
    content = [
        {
            "metadata": {"name": event.name, "namespace": event.namespace},
            "involvedObject": {"name": event.object_name, "namespace": event.object_namespace},
            "reason": event.reason,
            "message": event.message,
            "firstTimestamp": _seconds(event.first_timestamp),
            "lastTimestamp": _seconds(event.last_timestamp),
            "count": event.count,
            "type": event.type,
            "elemType": event.elem_type,
            "elemId": event.elem_id,
            "actionName": event.action_name,
        }
        for event in events
    ]
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


async def store(dataset: Dataset, database: Database) -> AsyncIterator[int]:
    """Store a dataset with the consumer's code, then copy it into the plain table.

    Yields the number of stored events after each transaction.
    """
    occurrences = dataset.occurrences()
    stored = 0
    async with BatchWriter(database.writer, _TOPIC) as writer:
        await writer.begin_partition(0, 0, "cluster")
        while batch := list(islice(occurrences, _BATCH)):
            await writer.store(records.batch(records.log(batch, begin=stored)))
            stored += len(batch)
            yield stored
    columns = ", ".join(COLUMNS)
    async with administrator(database.owner) as owner:
        await owner.execute(create_table(TABLE))
        await owner.execute(f"INSERT INTO {TABLE} ({columns}) SELECT {columns} FROM ops.events_v1")
        copied = await owner.fetchval(f"SELECT count(*) FROM {TABLE}")
        if copied != dataset.events:
            raise RuntimeError(f"{copied} of {dataset.events} events are stored")
    await settle(database)


async def settle(database: Database) -> None:
    """Give the tables visibility maps and statistics as in a database in use."""
    async with administrator(database.administrator) as connection:
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")


def _seconds(moment: datetime) -> str:
    return moment.isoformat()[:19] + "Z"
