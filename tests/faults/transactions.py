"""A worker that publishes in transactions, and aborts some of them."""

import asyncio
import contextlib
import random

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.faults.author import Author, Message
from tests.faults.load import choose, stop_producer
from tests.faults.oracle import Acknowledged

_LARGEST = 24
"""Messages of one transaction."""
_ABORTED = 0.4
"""The part of the transactions that are aborted."""
_OPEN = 0.15
"""Seconds for which a transaction stays open at most: all that follows it has to wait."""
_TIMEOUT_MS = 10_000
"""After this the coordinator aborts what a lost producer has left open."""
_REPLY_LIMIT = 20  # seconds; a producer waits for ever for the end of a transaction
_SETTLE_LIMIT = 60
"""Seconds after the end in which the last transaction must come to its end."""


class TransactionalWorker:
    """Sends an author's messages in transactions.

    What was aborted is sent again in the next transaction, so both copies are in the log and one
    counts. The last transaction of all is aborted too: partitions end with records that nobody
    reads. Messages are acknowledged by their transaction's commit.
    """

    def __init__(
        self, author: Author, bootstrap_servers: str, topic: str, rng: random.Random
    ) -> None:
        self.acknowledged: list[Acknowledged] = []
        self.sent = 0
        self.committed = 0
        self.aborted = 0
        self.unknown = 0
        """Transactions that an error ended, one way or the other."""
        self._author = author
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._rng = rng
        self._producer: AIOKafkaProducer | None = None
        self._again: list[Message] = []

    def __str__(self) -> str:
        return f"{self.committed} committed, {self.aborted} aborted, {self.unknown} unknown"

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set, and then one transaction to abort."""
        loop = asyncio.get_running_loop()
        try:
            while not stop.is_set():
                await self._transaction(commit=self._rng.random() >= _ABORTED)
                await asyncio.sleep(self._rng.uniform(0, _OPEN))
            deadline = loop.time() + _SETTLE_LIMIT
            # Until then one may be open, and the log has no end.
            while not await self._transaction(commit=False) and loop.time() < deadline:
                continue
        finally:
            await self._drop_producer()

    async def _transaction(self, *, commit: bool) -> bool:
        """One transaction from beginning to end, and whether it ended as it was to."""
        count = self._rng.randint(1, _LARGEST)
        messages = self._again + [
            self._author.next() for _ in range(max(1, count - len(self._again)))
        ]
        self._again = messages
        try:
            async with asyncio.timeout(_REPLY_LIMIT):
                # A new producer of the same id aborts what the one before it has left open.
                if self._producer is None:
                    self._producer = await self._connect()
                await self._producer.begin_transaction()
                promises = await self._send(self._producer, messages)
                await asyncio.sleep(self._rng.uniform(0, _OPEN))
                if not commit:
                    await self._producer.abort_transaction()
                    self.aborted += 1
                    return True
                # If it is lost now, only what has a source can be sent again.
                self._again = [message for message in messages if message.source is not None]
                await self._producer.commit_transaction()
        except (KafkaError, TimeoutError):
            self.unknown += 1
            await self._drop_producer()
            await asyncio.sleep(0.2)
            return False
        self._again = []
        self.acknowledged += promises
        self.committed += 1
        return True

    async def _send(
        self, producer: AIOKafkaProducer, messages: list[Message]
    ) -> list[Acknowledged]:
        futures = []
        for message in messages:
            if message.partition is None:
                message.partition = await choose(producer, self._topic, message)
            future = await producer.send(
                self._topic,
                message.value,
                message.key,
                partition=message.partition,
                headers=list(message.headers),
            )
            futures.append(future)
            self.sent += 1
        # Sent means in the log, also where the transaction is aborted then.
        places = await asyncio.gather(*futures)
        return [
            Acknowledged((place.partition, place.offset), message.source, message.sequence)
            for message, place in zip(messages, places, strict=True)
        ]

    async def _connect(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap_servers,
            transactional_id=self._topic,
            transaction_timeout_ms=_TIMEOUT_MS,
            linger_ms=5,
            metadata_max_age_ms=3000,
        )
        try:
            await producer.start()
        except BaseException:
            # A time-out cancels it.
            await stop_producer(producer)
            raise
        return producer

    async def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError):
                await stop_producer(producer)
