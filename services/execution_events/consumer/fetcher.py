"""Batches of the records that a client is assigned, fetched and read."""

import asyncio
import time
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from execution_events.consumer.assignment import Assignment
from execution_events.consumer.failpoints import unarmed
from execution_events.errors import RetryableError
from execution_events.projection.batch import ReadRecord, read
from execution_events.store.batches import Batch, Move, Reach

_POLL_MS = 100
"""How long a fetch waits for the first record; what is assigned meanwhile waits for it."""
_SLICE = 250
"""Records that are fetched and read at a stretch: 1 ms, and few enough for a processor's cache."""
_KEEP_TIME = 60
"""Seconds for which records are kept after one that the database refused."""
_SEARCH_TIME = 60
"""Seconds for which a record that cannot be read is searched for."""


class Fetched(NamedTuple):
    """A batch, and the generation in which its partitions are this member's."""

    generation: int
    batch: Batch


class UnreadableError(RetryableError):
    """Make another client: this one met a record that its library cannot read."""


class Unreadable:
    """Records that the Kafka library cannot read, over the life of several clients.

    Its exception tells neither partition nor offset and spoils the client. So the next client
    searches for a while: it fetches partition by partition and record by record, which stores all
    that comes before, and the one after it halts the partition there.
    """

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}
        self._deadline = 0.0

    @property
    def searching(self) -> bool:
        return time.monotonic() < self._deadline

    def search(self) -> None:
        """Search from now on, as far as it comes in a minute."""
        self._deadline = time.monotonic() + _SEARCH_TIME

    def found(self, partition: int, offset: int) -> None:
        """The record of `partition` at `offset` or the next is the one."""
        self._deadline = 0.0
        self.offsets[partition] = offset


class BatchFetcher:
    """Fetches and reads batches of the seeded partitions, each from where the one before ended.

    `RetryableError` means that the client is of no more use. Once `stop` is set there is nothing to
    fetch. `unreadable` holds where partitions are to halt, and whether that is still searched for.
    """

    def __init__(
        self,
        client: AIOKafkaConsumer,
        assignment: Assignment,
        unreadable: Unreadable,
        batch_max_records: int,
        stop: asyncio.Event,
        reach: Reach = unarmed,
    ) -> None:
        self._client = client
        self._assignment = assignment
        self.unreadable = unreadable
        self._batch_max_records = batch_max_records
        self._stop = stop
        self._reach = reach
        self._keep_until = 0.0

    def keep_records(self) -> None:
        """Keep the records of batches from now on, for a while: one of them is to be a dead letter.

        What else is read of a record takes a fraction of its memory.
        """
        self._keep_until = time.monotonic() + _KEEP_TIME

    async def poll(self) -> None:
        """Poll while all partitions are paused, so that the group keeps this member."""
        await self._poll(_POLL_MS, _SLICE)

    async def fetch(self, ahead: Batch | None = None) -> Fetched | None:
        """The next batch; after `ahead`, which is being stored, where that is given."""
        generation = self._assignment.generation
        records = await self._read()
        self._reach("fetched")
        if generation != self._assignment.generation:
            return None
        moves: dict[int, Move] = {}
        # Without a suspension from here on, so that positions and records belong together. A
        # position moves without a record over control records and aborted transactions.
        for partition, stored in self._assignment.positions.items():
            if ahead is not None and partition.partition in ahead.moves:
                stored = ahead.moves[partition.partition].next
            position = await self._client.position(partition)
            if position != stored:
                moves[partition.partition] = Move(stored, position)
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
        wait = _POLL_MS
        while left > 0:
            keep = time.monotonic() < self._keep_until
            polled = await self._poll(wait, min(left, _SLICE))
            for partition, records in polled.items():
                *most, last = records
                read_records.setdefault(partition.partition, []).extend(
                    [*(read(record, keep) for record in most), read(last)]
                )
                left -= len(records)
            if not polled or self.unreadable.searching:
                break
            wait = 0
            await asyncio.sleep(0)
        return read_records

    async def _poll(
        self, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Fetch what there is; nothing once `stop` is set."""
        if not self.unreadable.searching:
            return await self._getmany(timeout_ms=timeout_ms, max_records=max_records)
        records: dict[TopicPartition, list[ConsumerRecord]] = {}
        for partition, position in list(self._assignment.positions.items()):
            try:
                records |= await self._getmany(partition, timeout_ms=0, max_records=1)
            except UnreadableError:
                self.unreadable.found(partition.partition, position)
                raise
        return records or await self._getmany(timeout_ms=timeout_ms, max_records=1)

    async def _getmany(
        self, *partitions: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        polling = asyncio.create_task(
            self._client.getmany(*partitions, timeout_ms=timeout_ms, max_records=max_records)
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
                raise RetryableError("Kafka: the client has cancelled a fetch")
            records: dict[TopicPartition, list[ConsumerRecord]] = polling.result()
            return records
        except RetryableError:
            raise
        except KafkaError as error:
            raise RetryableError(f"Kafka: {type(error).__name__}: {error}") from error
        except Exception as error:
            self.unreadable.search()
            raise UnreadableError(f"a record cannot be read: {type(error).__name__}") from error
        finally:
            for task in (polling, stopping):
                task.cancel()
