"""aiokafka's consumer, with the errors of each partition kept separate.

aiokafka raises the error of one partition out of `getmany` and drops the fetched records of all.
This consumer keeps errors by partition, so that the other partitions continue.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import KafkaError

from execution_events.kafka.codecs import Decoders
from execution_events.kafka.connection import client_options
from execution_events.kafka.errors import error_text
from execution_events.kafka.protocol import forbid_topic_creation
from execution_events.logs import Logger
from execution_events.settings import KafkaSettings

_log = Logger(__name__)

_REQUEST_TIMEOUT = 10
"""Seconds until a request to a silent broker fails; the client then tries another broker."""
_STOP_TIMEOUT = 5
"""Seconds to leave the group, and to close connections."""


class PartitionError(NamedTuple):
    """The error of one partition; `offset` is that of an unreadable batch, else None."""

    text: str
    cause: str
    offset: int | None = None


class FetchedRecord(msgspec.Struct, gc=False):
    """A record without what no caller reads: one of aiokafka's takes several times as long."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class PartitionedConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """A consumer whose partitions fail independently.

    A partition with an entry in `partition_errors` is paused, and all records before its unreadable
    batch have been returned. Seeking the partition removes the entry.
    """

    def __init__(self, settings: KafkaSettings, decoders: Decoders, **options: Any) -> None:
        super().__init__(
            isolation_level="read_committed",
            # Offsets are stored in PostgreSQL, and one that the log no longer has is an error.
            enable_auto_commit=False,
            auto_offset_reset="none",
            request_timeout_ms=_REQUEST_TIMEOUT * 1000,
            **client_options(settings) | options,
        )
        forbid_topic_creation(self._client)
        self.address = settings.bootstrap_servers
        self.partition_errors: dict[TopicPartition, PartitionError] = {}
        self._decoders = decoders
        self._fetched_bytes = 0
        self._budget = 0

    @property
    def read_bytes(self) -> int:
        """Approximate bytes of the records returned so far, as fetched and as expanded."""
        return self._fetched_bytes + self._decoders.expanded

    async def start(self) -> None:
        """Connect and join the group; a failure leaves nothing open."""
        try:
            await super().start()
        except BaseException:
            await self.stop()
            raise
        # Nothing has been fetched yet: assigned partitions are paused.
        self._fetcher._records = _FetchBuffer(self)

    async def getmany(
        self,
        *partitions: TopicPartition,
        timeout_ms: int = 0,
        max_records: int | None = None,
        max_bytes: int = 2**63,
    ) -> dict[TopicPartition, list[FetchedRecord]]:
        """Return fetched records by partition, at most one producer batch beyond `max_bytes`.

        Raises `KafkaError` once aiokafka's fetch task has ended: aiokafka only logs the error, and
        would return no more records.
        """
        if self._fetcher.error_future.done():
            raise KafkaError("the fetch task has ended")
        self._budget = self.read_bytes + max_bytes
        records: dict[TopicPartition, list[FetchedRecord]] = await super().getmany(
            *partitions, timeout_ms=timeout_ms, max_records=max_records
        )
        return records

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Continue at `offset` and clear the partition's error."""
        super().seek(partition, offset)
        self.partition_errors.pop(partition, None)

    async def stop(self, timeout: float = _STOP_TIMEOUT) -> None:
        """Leave the group and close all connections, within about `timeout` seconds.

        Raises nothing: all batches are stored by then, and the group drops a silent member after
        its session timeout.
        """
        # aiokafka awaits tasks that it has cancelled, and some re-raise the CancelledError.
        leaving = asyncio.create_task(super().stop())
        try:
            await asyncio.wait({leaving}, timeout=timeout)
            if not leaving.done():
                _log.warning("group_leave_failed", error=f"timeout after {timeout} s")
            elif leaving.cancelled() or leaving.exception() is not None:
                error = None if leaving.cancelled() else leaving.exception()
                text = "cancelled" if error is None else error_text(error)
                _log.warning("group_leave_failed", error=text)
                closing = asyncio.create_task(self._client.close())
                await asyncio.wait({closing}, timeout=_STOP_TIMEOUT)
                closing.cancel()
                await asyncio.gather(closing, return_exceptions=True)
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    @property
    def has_budget(self) -> bool:
        """True while the current call of `getmany` may expand another batch."""
        return self.read_bytes < self._budget

    def take_records(self, result: FetchResult, max_records: int | None) -> list[FetchedRecord]:
        """Return the records of `result` up to the call's limits and the first unreadable batch."""
        partition = result._topic_partition
        if not result.check_assignment(partition) or not result.has_more() or not self.has_budget:
            return []
        records = result._partition_records
        self._fetched_bytes += records._records.begin_call()
        taken: list[FetchedRecord] = []
        try:
            # Records that precede an error stay in the list.
            taken.extend(islice(records._records_iterator, max_records))
        except _BudgetSpentError:
            pass
        except Exception as error:
            offset = records.next_fetch_offset
            text = records._records.unreadable_text(offset, error)
            self.fail_partition(partition, PartitionError(text, type(error).__name__, offset))
        result._update_position()
        if len(taken) != max_records:
            result._partition_records = None
        return taken

    def fail_partition(self, partition: TopicPartition, error: PartitionError) -> None:
        """Pause `partition` and keep its error."""
        self.partition_errors[partition] = error
        if partition in self.assignment():
            self.pause(partition)


class _FetchBuffer(OrderedDict[TopicPartition, Any]):
    """Fetched records that aiokafka has not returned yet, by partition."""

    def __init__(self, consumer: PartitionedConsumer) -> None:
        super().__init__()
        self._consumer = consumer

    def __setitem__(self, partition: TopicPartition, result: Any) -> None:
        if isinstance(result, FetchResult):
            records = result._partition_records
            records._records = _Batches(records._records, self._consumer)
            records._consumer_record = _fetched_record
            result.getall = lambda max_records=None: self._consumer.take_records(
                result, max_records
            )
            super().__setitem__(partition, result)
        else:
            error = result._error
            self._consumer.fail_partition(
                partition, PartitionError(error_text(error), type(error).__name__)
            )


def _fetched_record(partition: TopicPartition, record: Any) -> FetchedRecord:
    return FetchedRecord(
        partition.partition,
        record.offset,
        record.timestamp,
        record.key,
        record.value,
        record.headers,
    )


class _BudgetSpentError(Exception):
    """Leave the remaining batches to the next call: this one has used its bytes."""


class _Batches:
    """The batches of one fetch, and the one being read."""

    def __init__(self, batches: Any, consumer: PartitionedConsumer) -> None:
        self._batches = batches
        self._consumer = consumer
        self._size: int = batches.size_in_bytes()
        self._is_first = True
        self._current: Any = None
        self.has_next = batches.has_next

    def next_batch(self) -> Any:
        # The first batch of each call is read whatever its size; otherwise it would never be read.
        if not self._is_first and not self._consumer.has_budget:
            raise _BudgetSpentError
        self._is_first = False
        self._current = self._batches.next_batch()
        return self._current

    def begin_call(self) -> int:
        """Begin a call of `getmany`; return the bytes of all batches in the first call, else 0."""
        size, self._size = self._size, 0
        self._is_first = True
        return size

    def unreadable_text(self, offset: int, error: Exception) -> str:
        """Return a reason that names the batch; its last offset comes from its header."""
        last = "" if self._current is None else f" (to offset {self._current.next_offset - 1})"
        return f"the batch at offset {offset}{last} cannot be read: {error_text(error)}"
