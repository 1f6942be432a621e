"""aiokafka's producer, with a close that does not wait for Kafka."""

import asyncio
import traceback
from collections.abc import Iterable
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import (
    InvalidTimestampError,
    MessageSizeTooLargeError,
    ProducerClosed,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from aiokafka.producer.sender import SendProduceReqHandler

from execution_events.clock import now_ms
from execution_events.errors import RetryableError
from execution_events.kafka.errors import missing_topic
from execution_events.kafka.protocol import forbid_topic_creation

TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
NOT_APPENDED = (*TOO_LARGE, InvalidTimestampError, TopicAuthorizationFailedError)
"""Refusals of a batch after which the producer remains usable."""

_STOP_TIMEOUT = 2
"""Seconds that cancelled tasks may take to end."""
_TOPIC_ATTEMPTS = 6
_TOPIC_INTERVAL = 0.5
"""Seconds between attempts to find a topic that the brokers do not know."""


class Producer(AIOKafkaProducer):  # type: ignore[misc]
    """An idempotent producer whose `end` releases everything, even while Kafka is unavailable.

    aiokafka's own `stop` waits for every acknowledgement, without a timeout while Kafka is
    unavailable. If it is cancelled, it leaves its tasks running, and with a request in flight it
    fails.
    """

    def __init__(self, *, resend_ms: int, **options: Any) -> None:
        """Resend a batch for at most `resend_ms` after its first attempt."""
        super().__init__(**options)
        self._resend_ms = resend_ms
        forbid_topic_creation(self.client)
        self._ended = False
        self._requests: set[asyncio.Task[Any]] = set()
        self._sender._send_produce_req = self._send_unless_ended

    @property
    def alive(self) -> bool:
        """False once one of its tasks was cancelled: batches would then wait indefinitely."""
        reading = [connection._read_task for connection in self.client._conns.values()]
        tasks = (self._sender.sender_task, self.client._sync_task, *reading)
        return not any(task is not None and task.cancelled() for task in tasks)

    async def start(self) -> None:
        """Connect to Kafka; a cancellation leaves no connection open."""
        try:
            await super().start()
        except BaseException as error:
            # aiokafka's first connection is in a local variable until a broker has responded.
            for frame, _ in traceback.walk_tb(error.__traceback__):
                for value in frame.f_locals.values():
                    if isinstance(value, AIOKafkaConnection):
                        value.close()
            raise

    def known_partitions(self, topic: str) -> int:
        """Return the number of partitions of `topic` in the current metadata, 0 if unknown."""
        # aiokafka's own method builds a set, and this is called for each batch.
        return len(self.client.cluster._partitions.get(topic, ()))

    async def find_partitions(self, topic: str) -> int:
        """Return the number of partitions of `topic`, from a broker.

        Raises `RetryableError` if the topic does not exist or the right to describe it is missing.
        """
        for attempt in range(_TOPIC_ATTEMPTS):
            if attempt:
                # A new topic is not known to all brokers at once.
                await asyncio.sleep(_TOPIC_INTERVAL)
            self.client.add_topic(topic)
            await self.client.force_metadata_update()
            if known := self.known_partitions(topic):
                return known
            if topic in self.client.cluster.unauthorized_topics:
                raise RetryableError(
                    f"not authorized to describe the topic {topic}: grant Describe"
                )
        raise RetryableError(missing_topic(topic))

    def limit_batches(self, size: int) -> None:
        """Limit batches created from now on to `size` bytes before compression."""
        self._message_accumulator._batch_size = size

    async def end(self) -> None:
        """Fail unacknowledged batches and close all tasks and connections, within 2 s.

        A failed batch may be in the log or not. A cancellation ends only the wait.
        """
        tasks = self._abort()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_TIMEOUT)

    def _abort(self) -> list[asyncio.Task[Any]]:
        self._ended = True
        self._closed = True
        batches = self._message_accumulator
        batches.fail_all(ProducerClosed())
        for batch in (*batches._pending_batches, *chain.from_iterable(batches._batches.values())):
            for future in (batch.future, batch._drain_waiter):
                if future.done():
                    future.exception()  # Marks it retrieved, so asyncio does not warn.
        tasks = [*self._requests, self._sender.sender_task, self.client._sync_task]
        tasks = [task for task in tasks if task is not None and not task.done()]
        for task in tasks:
            task.cancel()
        for connection in self.client._conns.values():
            if connection._writer is not None:
                connection._writer.transport.abort()
            connection.close()
        return tasks

    async def _send_unless_ended(self, node_id: int, batches: Any) -> None:
        if self._ended:
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._requests.add(task)
        try:
            if _are_recent(batches.values(), self._resend_ms):
                await _ProduceHandler(self._sender, batches).do(node_id)
            else:
                for batch in batches.values():
                    batch.failure(ProducerClosed())
        finally:
            self._requests.discard(task)
        self._sender._in_flight.remove(node_id)
        self._sender._muted_partitions.difference_update(batches)


def _are_recent(batches: Iterable[Any], resend_ms: int) -> bool:
    """Return True if all `batches` were first sent less than `resend_ms` ago.

    aiokafka resends a batch by itself, also after the process was frozen or the machine asleep,
    when timers of the event loop have not run.
    """
    now = now_ms()
    for batch in batches:
        if batch.retry_count == 1:
            batch.first_sent = now
        elif batch.first_sent < now - resend_ms:
            return False
    return True


class _ProduceHandler(SendProduceReqHandler):  # type: ignore[misc]
    """A handler that keeps the producer usable after a refusal.

    aiokafka counts a refused batch in its sequence numbers and the broker does not, so the next
    batch would be out of order.
    """

    def handle_response(self, response: Any) -> None:
        super().handle_response(response)
        for batch in self._batches.values():
            # A resent batch may be in the log, and then the broker has counted it.
            if (
                batch.future.done()
                and isinstance(batch.future.exception(), NOT_APPENDED)
                and batch.retry_count == 1
            ):
                self._sender._txn_manager.increment_sequence_number(batch.tp, -batch.record_count)
