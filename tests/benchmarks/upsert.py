"""Reference for the consumer: PostgreSQL alone, with the minimum that keeps counts.

    python -m tests.benchmarks.upsert RECORDS PID

Batches of records, folded and encoded before the clock starts, go through COPY into a temporary
table and one upsert into a plain table with a primary key and no other index, each batch in one
transaction over one connection. Settings are in the environment; the database is empty; PID is the
server's. Prints a `Sample` as JSON.
"""

import asyncio
import json
import os
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import islice

import asyncpg
import msgspec

from execution_events import settings as settings_module
from execution_events.events import Occurrence
from tests.benchmarks import recurring, usage
from tests.benchmarks.reference import COLUMNS, create_table

BATCH = 10_000
"""Records of a transaction: the consumer's limit."""

_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = struct.pack("!h", -1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LATEST = tuple(
    column
    for column in COLUMNS
    if column
    not in ("execution_id", "namespace", "name", "first_timestamp", "last_timestamp", "count")
)
_UPSERT = f"""
    INSERT INTO plain_event ({", ".join(COLUMNS)})
    SELECT {", ".join(COLUMNS)} FROM batch_event ORDER BY execution_id, namespace, name
    ON CONFLICT (execution_id, namespace, name) DO UPDATE SET
        {
    ", ".join(
        f"{column} = CASE WHEN excluded.last_timestamp >= plain_event.last_timestamp"
        f" THEN excluded.{column} ELSE plain_event.{column} END"
        for column in _LATEST
    )
},
        first_timestamp = least(plain_event.first_timestamp, excluded.first_timestamp),
        last_timestamp = greatest(plain_event.last_timestamp, excluded.last_timestamp),
        count = plain_event.count + excluded.count
"""


@dataclass(frozen=True)
class Sample:
    """Seconds from the first COPY to the last commit, and seconds of CPU."""

    seconds: float
    cpu: float
    """Of this process."""
    postgres_cpu: float
    wrong: list[str]


def folded(records: Iterable[Occurrence]) -> list[Occurrence]:
    """Fold records whose times never go back into events, sorted by identity."""
    events: dict[tuple[str, str, str], Occurrence] = {}
    for record in records:
        identity = record.execution_id, record.namespace, record.name
        before = events.get(identity)
        events[identity] = (
            record
            if before is None
            else msgspec.structs.replace(
                record,
                count=before.count + record.count,
                first_timestamp=before.first_timestamp,
            )
        )
    return [events[identity] for identity in sorted(events)]


def encoded(events: Iterable[Occurrence]) -> bytes:
    """Encode events in PostgreSQL's binary COPY format."""
    content = bytearray(_SIGNATURE)
    for event in events:
        content += struct.pack("!h", len(COLUMNS))
        for column in COLUMNS:
            value = getattr(event, column)
            if isinstance(value, str):
                field = value.encode()
            else:
                if isinstance(value, datetime):
                    value = (value - _EPOCH) // _MICROSECOND
                field = struct.pack("!q", value)
            content += struct.pack("!i", len(field)) + field
    return bytes(content + _TRAILER)


def batches(records: Iterator[Occurrence]) -> Iterator[bytes]:
    """Yield the COPY data of each batch."""
    while batch := list(islice(records, BATCH)):
        yield encoded(folded(batch))


async def run(url: str, number: int, pid: int) -> Sample:
    """Store all batches and compare the counts."""
    copies = list(batches(recurring.records(number)))
    connection = await asyncpg.connect(url)
    await connection.execute(create_table("plain_event"))
    await connection.execute(
        "CREATE TEMPORARY TABLE batch_event (LIKE plain_event) ON COMMIT DELETE ROWS"
    )
    begun, before = time.perf_counter(), _used(pid)
    for copy in copies:
        async with connection.transaction():
            await connection.copy_to_table("batch_event", source=BytesIO(copy), format="binary")
            await connection.execute(_UPSERT)
    seconds, after = time.perf_counter() - begun, _used(pid)
    cpu, postgres_cpu = (end - start for start, end in zip(before, after, strict=True))
    found = await recurring.stored(connection, "plain_event")
    await connection.close()
    expected = recurring.counts(recurring.records(number))
    return Sample(seconds, cpu, postgres_cpu, recurring.difference(expected, found))


def _used(pid: int) -> tuple[float, float]:
    return time.process_time(), usage.cpu_of_tree(pid)


def main() -> None:
    """Measure and print the sample."""
    url = settings_module.load(os.environ).database.require_url()
    print(json.dumps(asdict(asyncio.run(run(url, *map(int, sys.argv[1:]))))))


if __name__ == "__main__":
    main()
