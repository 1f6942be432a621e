"""What Kafka's log of a partition is now, against what of it is stored."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from execution_events.consumer.topic import open_admin
from execution_events.errors import RetryableError
from execution_events.projection.fingerprint import Fingerprint, fingerprint
from execution_events.settings import Settings
from execution_events.store.batches import StoredPosition

_READ_TIMEOUT = 15
"""Seconds to read the last stored records again."""


class LogState(NamedTuple):
    """One partition's log: its cluster, its first offset, the offset after its last stable record,
    and the record that it has now where the last stored one was; None where there is none."""

    cluster_id: str
    begin: int
    end: int
    last: Fingerprint | None


def difference(stored: StoredPosition, log: LogState) -> str | None:
    """Why `log` is not the one that is stored up to `stored`; None where it is.

    A log whose retention removed the last stored record, but none after it, still is.
    """
    if stored.cluster_id not in (None, log.cluster_id):
        return f"the cluster is {log.cluster_id}, not {stored.cluster_id}"
    if stored.next_offset < log.begin:
        lost = log.begin - stored.next_offset
        return f"the log begins at {log.begin}: {lost} offsets were never stored"
    if stored.next_offset > log.end:
        return f"the log ends at {log.end}, before the stored offset {stored.next_offset}"
    if stored.last is not None and stored.last.offset >= log.begin and log.last != stored.last:
        return f"the log has another record at offset {stored.last.offset} than the stored one"
    return None


async def read_log(
    settings: Settings, stored: Mapping[int, StoredPosition | None]
) -> dict[int, LogState]:
    """The state of the log of each partition in `stored`.

    Raises `RetryableError` while Kafka does not say.
    """
    try:
        async with open_admin(settings) as admin:
            cluster_id = (await admin.describe_cluster())["cluster_id"]
        async with _reader(settings) as client, asyncio.timeout(_READ_TIMEOUT):
            partitions = {number: TopicPartition(settings.topic, number) for number in stored}
            begins = await client.beginning_offsets(list(partitions.values()))
            ends = await client.end_offsets(list(partitions.values()))
            last = {
                partitions[number]: position.last.offset
                for number, position in stored.items()
                if position is not None and position.last is not None
            }
            found = await _read(
                client,
                ends,
                {
                    partition: offset
                    for partition, offset in last.items()
                    if begins[partition] <= offset < ends[partition]
                },
            )
    except TimeoutError as error:
        raise RetryableError("Kafka: the last stored records cannot be read again") from error
    except KafkaError as error:
        raise RetryableError(f"Kafka: {type(error).__name__}: {error}") from error
    return {
        number: LogState(cluster_id, begins[partition], ends[partition], found.get(partition))
        for number, partition in partitions.items()
    }


async def _read(
    client: AIOKafkaConsumer,
    ends: Mapping[TopicPartition, int],
    offsets: Mapping[TopicPartition, int],
) -> dict[TopicPartition, Fingerprint]:
    """The first record at or after each offset."""
    found: dict[TopicPartition, Fingerprint] = {}
    client.assign(list(offsets))
    for partition, offset in offsets.items():
        client.seek(partition, offset)
    for partition in offsets:
        # Nothing but control records up to the end: there is no record to find.
        while partition not in found and await client.position(partition) < ends[partition]:
            # One alone, as a later one may be a record that cannot be read.
            fetched = await client.getmany(partition, timeout_ms=500, max_records=1)
            for records in fetched.values():
                found[partition] = fingerprint(records[0])
    return found


@asynccontextmanager
async def _reader(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    """A client outside of the group."""
    client = AIOKafkaConsumer(
        **settings.kafka_client(),
        client_id="execution-events-log",
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="none",
        # Its first question is asked before it knows the topic, and then once more.
        retry_backoff_ms=20,
    )
    try:
        await client.start()
        yield client
    finally:
        await client.stop()
