"""Delivery without a spool: what is not acknowledged is lost with the process."""

import asyncio
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from execution_events.errors import EventError, RetryableError
from execution_events.publisher.delivery.sender import (
    EVERY_PARTITION,
    Acknowledged,
    Outgoing,
    Sender,
)
from execution_events.publisher.delivery.task import Background
from execution_events.publisher.record import NewRecord
from execution_events.settings import Settings

_PENDING_MAX = 32 * 1024 * 1024
"""Bytes that may wait for Kafka; then `keep` waits."""
_RECORD_BYTES = 512
"""What a record that waits takes apart from its key and value, about."""
_SWEEP = 0.5
"""Seconds between two looks for records whose time is over."""


class DirectDelivery:
    """Keeps records in memory until Kafka acknowledges them; an asynchronous context manager.

    Entering reaches Kafka once, and raises `RetryableError` where it is away. All records have one
    source, of this object, and sequences from `first_sequence` on.
    """

    def __init__(
        self, settings: Settings, *, source: str | None = None, first_sequence: int = 1
    ) -> None:
        self._timeout = settings.publisher.publish_timeout
        self._close_timeout = settings.publisher.close_timeout
        self._sequence = first_sequence - 1
        self._sender = Sender(
            settings.kafka,
            source or f"urn:uuid:{uuid.uuid4()}",
            acknowledged=self._acknowledged,
            refused=self._refused,
            expired=self._expired,
        )
        self._bytes = 0
        self._moved = asyncio.Event()
        self._sweeper: Background | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        try:
            await self._sender.connect()
        except BaseException:
            await self._sender.close()
            raise
        self._sweeper = Background(self._sweep)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def keep(self, record: NewRecord) -> None:
        """Return when Kafka has acknowledged `record`.

        Raises `RetryableError` after the setting `publish_timeout`; the record may still arrive.
        """
        if self._bytes > _PENDING_MAX:
            await self._room()
        await self._submit(record)

    async def send(self, record: NewRecord) -> asyncio.Future[Acknowledged]:
        """Put `record` in line and give its acknowledgement to wait for.

        Waits while too much is in line, at most `publish_timeout`.
        """
        if self._bytes > _PENDING_MAX:
            await self._room()
        return self._submit(record)

    async def _room(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                while self._bytes > _PENDING_MAX and not self._closed:
                    await self._moved.wait()
        except TimeoutError:
            raise self._late() from None

    def _submit(self, record: NewRecord) -> asyncio.Future[Acknowledged]:
        # Nothing is awaited here: sequences are in the order of the line.
        if self._closed:
            raise RetryableError("the publisher was closed before the event was sent")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Acknowledged] = loop.create_future()
        self._sequence += 1
        key = record.key
        self._bytes += len(key) + len(record.value) + _RECORD_BYTES
        self._sender.submit(
            self._sender.partition_of(key),
            Outgoing(
                self._sequence,
                key,
                record.value,
                record.traceparent,
                record.timestamp,
                waiter,
                loop.time() + self._timeout,
            ),
        )
        return waiter

    async def flush(self) -> None:
        """Return when everything that was kept before has been acknowledged or refused.

        Raises `RetryableError` when it is closed meanwhile.
        """
        last = self._sequence
        while (oldest := self._sender.oldest) is not None and oldest <= last:
            if self._closed:
                raise RetryableError("the publisher was closed before Kafka acknowledged all")
            await self._moved.wait()

    async def close(self) -> int:
        """Wait for what is pending, at most `close_timeout` and 5 s; give how much of it is left.

        Whoever waits for what is left gets a `RetryableError`; it may or may not arrive. A
        cancellation ends the waiting for Kafka, and what there is to close is closed all the same.
        """
        try:
            async with asyncio.timeout(self._close_timeout):
                await self.flush()
        except (TimeoutError, RetryableError):
            pass
        finally:
            left = await self._stop()
        return left

    async def _stop(self) -> int:
        self._closed = True
        left = self._sender.pending
        if self._sweeper is not None:
            await self._sweeper.stop()
        await self._sender.close()
        for _, line in self._sender.lines:
            for record in line:
                _fail(
                    record,
                    RetryableError("the publisher was closed before Kafka acknowledged the event"),
                )
        self._note_move()
        return left

    def _acknowledged(self, records: Sequence[Outgoing], partition: int, base: int) -> None:
        offset, step = (base, 1) if base >= 0 else (-1, 0)
        for record in records:
            self._bytes -= _size(record)
            waiter = record.waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(Acknowledged(partition, offset))
            offset += step
        self._note_move()

    def _refused(self, record: Outgoing, detail: str) -> None:
        self._bytes -= _size(record)
        _fail(record, EventError(detail))
        self._note_move()

    def _expired(self, record: Outgoing) -> None:
        # Its waiter has given up long ago.
        self._bytes -= _size(record)
        self._note_move()

    def _note_move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _sweep(self) -> None:
        """One timer for all: a timer for each record would cost more than sending it."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP)
            now = loop.time()
            for partition, line in self._sender.lines:
                # All have the same time to wait, so the oldest come first.
                for record in line:
                    if record.deadline > now:
                        break
                    _fail(record, self._late(partition))

    def _late(self, partition: int = EVERY_PARTITION) -> RetryableError:
        reason = self._sender.reason(partition)
        return RetryableError(
            f"Kafka has acknowledged nothing for {self._timeout} s"
            + (f": {reason}" if reason else "")
        )


def _size(record: Outgoing) -> int:
    return len(record.key) + len(record.value) + _RECORD_BYTES


def _fail(record: Outgoing, error: Exception) -> None:
    waiter = record.waiter
    if waiter is not None and not waiter.done():
        waiter.set_exception(error)
        waiter.exception()  # Else asyncio complains where nobody waits any more.
