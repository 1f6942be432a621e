"""aiokafka's producer, with an end that does not wait for Kafka.

The one place that knows aiokafka from the inside: 0.14, which the dependency's bounds demand.
"""

import asyncio
import traceback
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import ProducerClosed

_STOP_TIMEOUT = 2
"""Seconds that cancelled tasks may take to end."""


class Producer(AIOKafkaProducer):  # type: ignore[misc]
    """An idempotent producer whose `end` leaves nothing behind, whatever Kafka does.

    aiokafka's own `stop` waits for every acknowledgement, and so for ever while Kafka is away;
    ended from outside it leaves its tasks running, and with a request in flight it fails.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._ended = False
        self._requests: set[asyncio.Task[Any]] = set()
        self._send_request = self._sender._send_produce_req
        self._sender._send_produce_req = self._send_unless_ended

    @property
    def alive(self) -> bool:
        """Whether its tasks run; those that others have cancelled would let batches wait for ever.

        Of one that has started.
        """
        reading = [connection._read_task for connection in self.client._conns.values()]
        tasks = (self._sender.sender_task, self.client._sync_task, *reading)
        return not any(task is not None and task.cancelled() for task in tasks)

    async def start(self) -> None:
        """Reach Kafka; a cancellation leaves no connection open."""
        try:
            await super().start()
        except BaseException as error:
            # aiokafka's first connection is in a local variable until a broker has answered.
            for frame, _ in traceback.walk_tb(error.__traceback__):
                for value in frame.f_locals.values():
                    if isinstance(value, AIOKafkaConnection):
                        value.close()
            raise

    async def end(self) -> None:
        """Fail what is not acknowledged and give up all tasks and connections, within 2 s.

        What was failed may be in the log or not. A cancellation ends the waiting and nothing else.
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
                    future.exception()  # Else asyncio complains where nobody waits any more.
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
            await self._send_request(node_id, batches)
        finally:
            self._requests.discard(task)
