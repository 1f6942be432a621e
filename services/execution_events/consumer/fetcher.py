"""Batches of the records that a client is assigned, fetched and read."""

import asyncio
import time
from typing import NamedTuple

from aiokafka import ConsumerRecord, TopicPartition

from execution_events.consumer.assignment import Assignment
from execution_events.errors import RetryableError
from execution_events.kafka.consumer import Client, describe
from execution_events.projection.batch import ReadRecord, read
from execution_events.store.write.batches import Batch, Move

_POLL_MS = 100
"""How long a fetch waits for the first record; what is assigned meanwhile waits for it."""
_SLICE = 250
"""Records that are fetched and read at a stretch: 1 ms, and few enough for a processor's cache."""
_BATCH_BYTES = 16 * 1024 * 1024
"""The size at which a batch ends, as fetched and as expanded; the last slice may exceed it by one
producer batch. About twice what 10,000 records of usual size take."""
_KEEP_TIME = 60
"""Seconds for which records are kept after one that the database refused."""


class Fetched(NamedTuple):
    """A batch, and the generation in which its partitions are this member's."""

    generation: int
    batch: Batch


class BatchFetcher:
    """Fetches and reads batches of the seeded partitions, each from where the one before ended.

    A batch is bounded in records and in bytes. `RetryableError` means that the client is of no more
    use. Once `stop` is set there is nothing to fetch.
    """

    def __init__(
        self,
        client: Client,
        assignment: Assignment,
        batch_max_records: int,
        stop: asyncio.Event,
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._batch_max_records = batch_max_records
        self._stop = stop
        self._keep_until = 0.0

    def keep_records(self) -> None:
        """Keep the records of batches from now on, for a while: one of them is to be a dead letter.

        What else is read of a record takes a fraction of its memory.
        """
        self._keep_until = time.monotonic() + _KEEP_TIME

    async def poll(self, timeout_ms: int = _POLL_MS) -> None:
        """Poll while all partitions are paused, so that the group keeps this member."""
        await self._getmany(timeout_ms, _SLICE, _BATCH_BYTES)

    async def fetch(self, ahead: Batch | None = None) -> Fetched | None:
        """The next batch; after `ahead`, which is being stored, where that is given."""
        generation = self._assignment.generation
        records = await self._read()
        if generation != self._assignment.generation:
            return None
        moves: dict[int, Move] = {}
        # Without a suspension from here on, so that positions and records belong together. A
        # position moves without a record over control records and aborted transactions.
        for partition, stored in self._assignment.positions.items():
            trouble = self._client.troubles.get(partition)
            if trouble is not None and trouble.offset is None:
                continue
            if ahead is not None and partition.partition in ahead.moves:
                stored = ahead.moves[partition.partition].next
            position = await self._client.position(partition)
            if position != stored:
                moves[partition.partition] = Move(
                    stored, position, self._assignment.epochs[partition]
                )
        if not moves:
            return None
        return Fetched(
            generation, Batch([r for p in sorted(moves) for r in records.get(p, ())], moves)
        )

    async def _read(self) -> dict[int, list[ReadRecord]]:
        """Fetch and read records by partition: what there is, up to a batch.

        In slices, so that a round trip of the batch that is being stored waits for one of them at
        most. The last of a slice is kept, as a record that tells the log from another.
        """
        read_records: dict[int, list[ReadRecord]] = {}
        left = self._batch_max_records
        end = self._client.read_bytes + _BATCH_BYTES
        wait = _POLL_MS
        while left > 0 and (bytes_left := end - self._client.read_bytes) > 0:
            keep = time.monotonic() < self._keep_until
            polled = await self._getmany(wait, min(left, _SLICE), bytes_left)
            for partition, records in polled.items():
                *most, last = records
                read_records.setdefault(partition.partition, []).extend(
                    [*(read(record, keep) for record in most), read(last)]
                )
                left -= len(records)
            if not polled:
                break
            wait = 0
            await asyncio.sleep(0)
        return read_records

    async def _getmany(
        self, timeout_ms: int, max_records: int, max_bytes: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Fetch what there is; nothing once `stop` is set."""
        polling = asyncio.create_task(
            self._client.getmany(
                timeout_ms=timeout_ms, max_records=max_records, max_bytes=max_bytes
            )
        )
        stopping = asyncio.create_task(self._stop.wait())
        try:
            # A rebalance holds getmany for as long as it takes. To cancel it spoils the client,
            # like an exception through it (both turn max.poll.interval off for good): it is done
            # only where the client ends too.
            await asyncio.wait({polling, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not polling.done():
                return {}
            if polling.cancelled():
                # By the client itself, after it has left its group.
                raise self._failed("the client has cancelled a fetch", "CancelledError")
            records: dict[TopicPartition, list[ConsumerRecord]] = polling.result()
            return records
        except RetryableError:
            raise
        except Exception as error:
            # Whatever the library raises, another client goes on from what is stored.
            raise self._failed(describe(error), type(error).__name__) from error
        finally:
            for task in (polling, stopping):
                task.cancel()

    def _failed(self, text: str, cause: str) -> RetryableError:
        return RetryableError(f"Kafka at {self._client.address}: {text}", cause)
