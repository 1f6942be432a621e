"""Delivery without a spool: unacknowledged records are lost with the process."""

import asyncio
import uuid
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from execution_events.errors import EventError, RetryableError
from execution_events.publisher.delivery.sender import EVERY_PARTITION, Acknowledged, Sender
from execution_events.publisher.delivery.task import RestartingTask
from execution_events.publisher.record import PendingRecord
from execution_events.settings import KafkaSettings, PublisherSettings

_PENDING_BYTES = 32 * 1024 * 1024
"""Limit of the bytes that wait for Kafka; `deliver` waits above it."""
_RECORD_BYTES = 512
"""Approximate memory of a pending record without its key and value."""
_TIMEOUT_CHECK_INTERVAL = 0.25


class DirectDelivery:
    """A delivery that keeps records in memory until Kafka acknowledges them.

    An asynchronous context manager: entering it connects once, and raises `RetryableError` without
    Kafka. All records have one source, of this object, and sequences from `first_sequence` on.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: PublisherSettings,
        *,
        source: str | None = None,
        first_sequence: int = 1,
    ) -> None:
        self._timeout = settings.publish_timeout
        self._close_timeout = settings.close_timeout
        self._sequence = first_sequence - 1
        self._sender = Sender(
            kafka,
            source or f"urn:uuid:{uuid.uuid4()}",
            acknowledged=self._on_acknowledged,
            refused=self._on_refused,
            expired=self._on_expired,
        )
        # By sequence, the future of the caller.
        self._waiters: dict[int, asyncio.Future[Acknowledged]] = {}
        self._bytes = 0
        self._progress = asyncio.Event()
        self._timeouts: RestartingTask | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        try:
            await self._sender.connect()
        except BaseException:
            await self._sender.close()
            raise
        self._timeouts = RestartingTask(self._check_timeouts)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def deliver(self, record: PendingRecord) -> None:
        """Return when Kafka has acknowledged `record`.

        Raises `RetryableError` after the setting `publish_timeout`; the record may still arrive.
        """
        if self._bytes > _PENDING_BYTES:
            await self._until_below_limit()
        await self._submit(record)

    async def send(self, record: PendingRecord) -> asyncio.Future[Acknowledged]:
        """Queue `record` and return a future of its acknowledgement.

        Waits for at most `publish_timeout` while too much is pending.
        """
        if self._bytes > _PENDING_BYTES:
            await self._until_below_limit()
        return self._submit(record)

    async def _until_below_limit(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                while self._bytes > _PENDING_BYTES and not self._closed:
                    await self._progress.wait()
        except TimeoutError:
            raise self._timeout_error(EVERY_PARTITION) from None

    def _submit(self, record: PendingRecord) -> asyncio.Future[Acknowledged]:
        # Nothing is awaited here, so that sequences have the order of the queue.
        if self._closed:
            raise RetryableError("the publisher was closed before the event was sent")
        waiter: asyncio.Future[Acknowledged] = asyncio.get_running_loop().create_future()
        sequence = self._sequence = self._sequence + 1
        key = record.key
        record.sequence = sequence
        record.partition = self._sender.partition_of(key)
        record.attempted_at = record.created_at
        self._bytes += len(key) + len(record.value) + _RECORD_BYTES
        self._waiters[sequence] = waiter
        self._sender.submit(record)
        return waiter

    async def flush(self) -> None:
        """Return when every record delivered before has been acknowledged or refused.

        Raises `RetryableError` if the delivery is closed meanwhile.
        """
        last = self._sequence
        while (oldest := self._sender.oldest) is not None and oldest <= last:
            if self._closed:
                raise RetryableError("the publisher was closed before Kafka acknowledged all")
            await self._progress.wait()

    async def close(self) -> int:
        """Wait for pending records for at most `close_timeout` and 5 s; return how many remain.

        Callers of the remaining ones get a `RetryableError`; these records may or may not arrive.
        A cancellation ends only the wait for Kafka; everything is still closed.
        """
        try:
            async with asyncio.timeout(self._close_timeout):
                await self.flush()
        except (TimeoutError, RetryableError):
            pass
        finally:
            pending = await self._stop()
        return pending

    async def _stop(self) -> int:
        self._closed = True
        pending = self._sender.pending
        if self._timeouts is not None:
            await self._timeouts.stop()
        await self._sender.close()
        for waiter in self._waiters.values():
            _fail(
                waiter,
                RetryableError("the publisher was closed before Kafka acknowledged the event"),
            )
        self._waiters.clear()
        self._note_progress()
        return pending

    def _on_acknowledged(self, records: Sequence[PendingRecord], partition: int, base: int) -> None:
        offset, step = (base, 1) if base >= 0 else (-1, 0)
        take_waiter = self._waiters.pop
        size = 0
        for record in records:
            size += len(record.key) + len(record.value) + _RECORD_BYTES
            waiter = take_waiter(record.sequence, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(Acknowledged(partition, offset))
            offset += step
        self._bytes -= size
        self._note_progress()

    def _on_refused(self, record: PendingRecord, detail: str) -> None:
        self._settle_failed(record, EventError(detail))

    def _on_expired(self, record: PendingRecord) -> None:
        self._settle_failed(record, RetryableError("the event has become too old to be sent"))

    def _settle_failed(self, record: PendingRecord, error: Exception) -> None:
        self._bytes -= len(record.key) + len(record.value) + _RECORD_BYTES
        if (waiter := self._waiters.pop(record.sequence, None)) is not None:
            _fail(waiter, error)
        self._note_progress()

    def _note_progress(self) -> None:
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()

    async def _check_timeouts(self) -> None:
        """Fail callers after the timeout, up to half a second late.

        A timer or a deadline for each record would cost more than sending the record.
        """
        loop = asyncio.get_running_loop()
        # Each with the last sequence that it applies to.
        deadlines: deque[tuple[float, int]] = deque()
        late = -1  # The least sequence is 0.
        while True:
            now = loop.time()
            deadlines.append((now + self._timeout, self._sequence))
            while deadlines[0][0] <= now:
                _, late = deadlines.popleft()
            for partition, records in self._sender.pending_by_partition:
                for record in records:
                    if record.sequence > late:
                        break
                    if (waiter := self._waiters.pop(record.sequence, None)) is not None:
                        _fail(waiter, self._timeout_error(partition))
            await asyncio.sleep(_TIMEOUT_CHECK_INTERVAL)

    def _timeout_error(self, partition: int) -> RetryableError:
        error = self._sender.error(partition)
        return RetryableError(
            f"Kafka has acknowledged nothing for {self._timeout} s"
            + (f": {error}" if error else "")
        )


def _fail(waiter: asyncio.Future[Acknowledged], error: Exception) -> None:
    if not waiter.done():
        waiter.set_exception(error)
        waiter.exception()  # Otherwise asyncio complains when the caller has gone.
