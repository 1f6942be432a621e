"""aiokafka's consumer from the inside: 0.14, as the dependency demands.

aiokafka raises the error of one partition out of `getmany` and drops what it has fetched of all.
This client keeps errors by partition, so that the other partitions go on.
"""

import asyncio
import re
from collections import OrderedDict
from itertools import islice
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import KafkaError

from execution_events.kafka.codecs import Decoders
from execution_events.kafka.connection import client_options
from execution_events.kafka.protocol import forbid_topic_creation
from execution_events.logs import Logger
from execution_events.settings import KafkaSettings

_log = Logger(__name__)

_REQUEST_TIMEOUT = 10
"""Seconds until a broker that does not answer is given up for another, or for another attempt."""
_STOP_TIMEOUT = 5
"""Seconds to leave the group, and to close connections."""


def describe(error: BaseException) -> str:
    """Return an error's type and text; the texts of aiokafka's errors repeat the type."""
    name = type(error).__name__
    text = re.sub(rf"^(\[Error -?\d+\] )?{name}(: |$)", "", str(error))
    return f"{name}: {text}" if text else name


class Trouble(NamedTuple):
    """The error of one partition; `offset` is that of an unreadable batch, else None."""

    text: str
    cause: str
    offset: int | None = None


class Client(AIOKafkaConsumer):  # type: ignore[misc]
    """A consumer whose partitions fail one by one.

    A partition with an entry in `troubles` is paused, and all records before its unreadable batch
    have been returned. Seeking the partition removes the entry.
    """

    def __init__(self, settings: KafkaSettings, decoders: Decoders, **options: Any) -> None:
        super().__init__(
            isolation_level="read_committed",
            # Offsets live in PostgreSQL; one that the log no longer has must be seen.
            enable_auto_commit=False,
            auto_offset_reset="none",
            request_timeout_ms=_REQUEST_TIMEOUT * 1000,
            **client_options(settings) | options,
        )
        forbid_topic_creation(self._client)
        self.address = settings.bootstrap_servers
        self.troubles: dict[TopicPartition, Trouble] = {}
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
        # Nothing was fetched so far: what was assigned is paused.
        self._fetcher._records = _FetchBuffer(self)

    async def getmany(
        self,
        *partitions: TopicPartition,
        timeout_ms: int = 0,
        max_records: int | None = None,
        max_bytes: int = 2**63,
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Return what aiokafka's `getmany` does, at most one producer batch beyond `max_bytes`.

        Raises `KafkaError` once aiokafka's fetch task has ended: aiokafka logs the error and
        returns no record any more.
        """
        if self._fetcher.error_future.done():
            raise KafkaError("the task that fetches has ended")
        self._budget = self.read_bytes + max_bytes
        records: dict[TopicPartition, list[ConsumerRecord]] = await super().getmany(
            *partitions, timeout_ms=timeout_ms, max_records=max_records
        )
        return records

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Continue at `offset` and clear the partition's trouble."""
        super().seek(partition, offset)
        self.troubles.pop(partition, None)

    async def stop(self, timeout: float = _STOP_TIMEOUT) -> None:
        """Leave the group and close all connections, within about `timeout` seconds.

        Raises nothing: all is stored by then, and the group notices by itself that a member has
        gone.
        """
        # aiokafka awaits tasks that it has cancelled, and some pass the CancelledError on.
        leaving = asyncio.create_task(super().stop())
        try:
            await asyncio.wait({leaving}, timeout=timeout)
            if not leaving.done():
                _log.warning("group_leave_failed", error=f"not within {timeout} s")
            elif leaving.cancelled() or leaving.exception() is not None:
                error = "cancelled" if leaving.cancelled() else repr(leaving.exception())
                _log.warning("group_leave_failed", error=error)
                closing = asyncio.create_task(self._client.close())
                await asyncio.wait({closing}, timeout=_STOP_TIMEOUT)
                closing.cancel()
                await asyncio.gather(closing, return_exceptions=True)
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    @property
    def may_expand(self) -> bool:
        """True while the current call of `getmany` may begin another batch."""
        return self.read_bytes < self._budget

    def drain(self, result: FetchResult, max_records: int | None) -> list[ConsumerRecord]:
        """Return the records of `result` up to the call's limits and the first unreadable batch."""
        partition = result._topic_partition
        if not result.check_assignment(partition) or not result.has_more() or not self.may_expand:
            return []
        records = result._partition_records
        self._fetched_bytes += records._records.begin()
        given: list[ConsumerRecord] = []
        try:
            # Records taken before an error stay in the list.
            given.extend(islice(records._records_iterator, max_records))
        except _BudgetSpentError:
            pass
        except Exception as error:
            offset = records.next_fetch_offset
            text = records._records.tell(offset, error)
            self.note(partition, Trouble(text, type(error).__name__, offset))
        result._update_position()
        if len(given) != max_records:
            result._partition_records = None
        return given

    def note(self, partition: TopicPartition, trouble: Trouble) -> None:
        """Pause `partition` and keep its trouble."""
        self.troubles[partition] = trouble
        if partition in self.assignment():
            self.pause(partition)


class _FetchBuffer(OrderedDict[TopicPartition, Any]):
    """The fetched records that aiokafka has not returned yet, by partition."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def __setitem__(self, partition: TopicPartition, result: Any) -> None:
        if isinstance(result, FetchResult):
            records = result._partition_records
            records._records = _Batches(records._records, self._client)
            result.getall = lambda max_records=None: self._client.drain(result, max_records)
            super().__setitem__(partition, result)
        else:
            error = result._error
            self._client.note(partition, Trouble(describe(error), type(error).__name__))


class _BudgetSpentError(Exception):
    """Fetch the remaining batches again: the call has used its bytes."""


class _Batches:
    """The batches of one fetch; remembers the batch being read."""

    def __init__(self, batches: Any, client: Client) -> None:
        self._batches = batches
        self._client = client
        self._size: int = batches.size_in_bytes()
        self._is_first = True
        self._current: Any = None
        self.has_next = batches.has_next

    def next_batch(self) -> Any:
        # The first batch of each call is read whatever its size, or it would never be.
        if not self._is_first and not self._client.may_expand:
            raise _BudgetSpentError
        self._is_first = False
        self._current = self._batches.next_batch()
        return self._current

    def begin(self) -> int:
        """Start a call; return the bytes of all batches the first time, then 0."""
        size, self._size = self._size, 0
        self._is_first = True
        return size

    def tell(self, offset: int, error: Exception) -> str:
        """Return a reason that names the batch; its last offset comes from its header."""
        last = "" if self._current is None else f" (to offset {self._current.next_offset - 1})"
        return f"the batch at offset {offset}{last} cannot be read: {describe(error)}"
