"""Batches of the seeded partitions, fetched and decoded."""

import asyncio
import time
from typing import NamedTuple

from aiokafka import TopicPartition

from execution_events.consumer.assignment import Assignment
from execution_events.errors import RetryableError
from execution_events.kafka.consumer import FetchedRecord, PartitionedConsumer
from execution_events.kafka.errors import kafka_error, translated
from execution_events.projection.batch import ReadRecord, read
from execution_events.store.write.batches import Batch
from execution_events.store.write.progress import OffsetMove

_POLL_MS = 100
"""Timeout for the first record of a fetch; partitions assigned meanwhile wait for it."""
_FILL_MS = 10
"""Timeout for further records while another batch is being stored, whose end waits for it."""
_SLICE_RECORDS = 250
"""Records fetched and decoded in one step: about 1 ms, and few enough for a processor's cache."""
_BATCH_BYTES = 16 * 1024 * 1024
"""Limit on a batch's bytes, as fetched and as expanded; the last slice may exceed it by one
producer batch. About the size of 20,000 typical records."""
_RETENTION_TIME = 60
"""Seconds for which records are retained after the database has refused one."""


class FetchedBatch(NamedTuple):
    """A batch, and the generation in which this member owns its partitions."""

    generation: int
    batch: Batch


class BatchFetcher:
    """A fetcher of batches of the seeded partitions, each from the end of the one before.

    A batch is limited in records and in bytes. `RetryableError` means that the client has failed
    and must be replaced. Once `stop` is set, every fetch is empty.
    """

    def __init__(
        self,
        client: PartitionedConsumer,
        assignment: Assignment,
        batch_max_records: int,
        stop: asyncio.Event,
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._batch_max_records = batch_max_records
        self._stop = stop
        self._retain_until = 0.0

    def retain_records(self) -> None:
        """Retain the records of the next batches for a while, so that one can be a dead letter.

        The decoded fields alone take a fraction of a record's memory.
        """
        self._retain_until = time.monotonic() + _RETENTION_TIME

    async def poll(self, timeout_ms: int = _POLL_MS) -> None:
        """Poll while all partitions are paused, so that the group keeps this member."""
        await self._getmany(timeout_ms, _SLICE_RECORDS, _BATCH_BYTES)

    async def fetch(
        self, after: Batch | None = None, storing: asyncio.Future[bool] | None = None
    ) -> FetchedBatch | None:
        """Return the next batch, or None.

        It follows `after`, a batch that is being stored, and grows until that is stored.
        """
        generation = self._assignment.generation
        records = await self._read(storing)
        if generation != self._assignment.generation:
            return None
        moves: dict[int, OffsetMove] = {}
        # Nothing below suspends, so positions and records belong together. A position moves
        # without a record past control records and aborted transactions.
        for partition, stored in self._assignment.positions.items():
            error = self._client.partition_errors.get(partition)
            if error is not None and error.offset is None:
                continue
            if after is not None and partition.partition in after.moves:
                stored = after.moves[partition.partition].next
            position = await self._client.position(partition)
            if position != stored:
                moves[partition.partition] = OffsetMove(
                    stored, position, self._assignment.epochs[partition]
                )
        if not moves:
            return None
        return FetchedBatch(
            generation, Batch([r for p in sorted(moves) for r in records.get(p, ())], moves)
        )

    async def _read(self, storing: asyncio.Future[bool] | None) -> dict[int, list[ReadRecord]]:
        """Fetch and decode available records, up to the limits of a batch; return by partition.

        While another batch is being stored, records that arrive later are available too.

        It works in slices, so that a reply of PostgreSQL to the batch being stored waits for one
        slice at most. The last record of each slice is retained: its fingerprint identifies the
        log.
        """
        read_records: dict[int, list[ReadRecord]] = {}
        left = self._batch_max_records
        end = self._client.read_bytes + _BATCH_BYTES
        wait = _POLL_MS
        while left > 0 and (bytes_left := end - self._client.read_bytes) > 0:
            retain = time.monotonic() < self._retain_until
            polled = await self._getmany(wait, min(left, _SLICE_RECORDS), bytes_left)
            for partition, records in polled.items():
                *others, last = records
                read_records.setdefault(partition.partition, []).extend(
                    [*(read(record, retain) for record in others), read(last)]
                )
                left -= len(records)
            if polled:
                wait = 0
                await asyncio.sleep(0)
            elif storing is None or storing.done() or self._stop.is_set():
                break
            elif read_records:
                wait = _FILL_MS
        return read_records

    async def _getmany(
        self, timeout_ms: int, max_records: int, max_bytes: int
    ) -> dict[TopicPartition, list[FetchedRecord]]:
        """Fetch available records; none once `stop` is set."""
        polling = asyncio.create_task(
            self._client.getmany(
                timeout_ms=timeout_ms, max_records=max_records, max_bytes=max_bytes
            )
        )
        stopping = asyncio.create_task(self._stop.wait())
        try:
            # getmany waits for a rebalance to end. Cancelling it, like an exception through it,
            # turns max.poll.interval off permanently: the client must end with it.
            await asyncio.wait({polling, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not polling.done():
                return {}
            if polling.cancelled():
                # The client cancels its fetches after it has left its group.
                raise kafka_error(
                    self._client.address, "the client has cancelled a fetch", "CancelledError"
                )
            records: dict[TopicPartition, list[FetchedRecord]] = polling.result()
            return records
        except RetryableError:
            raise
        except Exception as error:
            # Whatever the library raises, a new client continues at the stored offsets.
            raise translated(self._client.address, error) from error
        finally:
            for task in (polling, stopping):
                task.cancel()
