"""FastStream: a batch subscriber with one `executemany` of asyncpg for each batch.

    python -m tests.benchmarks.peers.faststream_peer

Offsets are committed after the rows: at least once. Types are not applied, nothing is logged, and
the loop is uvloop, as on FastStream's command line.
"""

from datetime import datetime
from typing import Any

import asyncpg
import uvloop
from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker

from tests.benchmarks.peers.job import UPSERT, Job, row


async def main(job: Job) -> None:
    """Store batches until SIGTERM."""
    broker = KafkaBroker(job.servers, logger=None, apply_types=False)
    connection = await asyncpg.connect(job.database_url)

    async def store(records: list[dict[str, Any]]) -> None:
        await connection.executemany(UPSERT, [_arguments(record) for record in records])

    subscriber = broker.subscriber(
        job.topic,
        batch=True,
        max_records=job.batch,
        group_id=job.group,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    subscriber(store)
    await FastStream(broker, logger=None).run()


def _arguments(record: dict[str, Any]) -> tuple[Any, ...]:
    columns = row(record)
    for name in ("first_timestamp", "last_timestamp"):
        columns[name] = datetime.fromisoformat(columns[name])
    return tuple(columns.values())


if __name__ == "__main__":
    uvloop.run(main(Job.load()))
