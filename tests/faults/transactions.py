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
"""Maximum number of messages in a transaction."""
_ABORTED = 0.4
"""Fraction of the transactions that are aborted."""
_OPEN = 0.15
"""Maximum seconds for which a transaction stays open; later records are not readable meanwhile."""
_TIMEOUT_MS = 10_000
"""Time after which the coordinator aborts a lost producer's open transaction."""
_REPLY_LIMIT = 20  # seconds; a producer waits indefinitely for the end of a transaction
_SETTLE_LIMIT = 60
"""Seconds until the last transaction must be aborted."""


class TransactionalWorker:
    """A worker that sends an author's messages in transactions.

    Aborted messages are sent again in the next transaction, so both copies are in the log and one
    counts. The very last transaction is aborted too, so that partitions end with records that no
    consumer reads. A message is acknowledged when its transaction commits.
    """

    def __init__(
        self, author: Author, bootstrap_servers: str, topic: str, rng: random.Random
    ) -> None:
        self.acknowledged: list[Acknowledged] = []
        self.sent = 0
        self.committed = 0
        self.aborted = 0
        self.unknown = 0
        """Transactions that ended in an error, so committed or aborted."""
        self._author = author
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._rng = rng
        self._producer: AIOKafkaProducer | None = None
        self._again: list[Message] = []

    def __str__(self) -> str:
        return f"{self.committed} committed, {self.aborted} aborted, {self.unknown} unknown"

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set, then abort one last transaction."""
        loop = asyncio.get_running_loop()
        try:
            while not stop.is_set():
                await self._transaction(commit=self._rng.random() >= _ABORTED)
                await asyncio.sleep(self._rng.uniform(0, _OPEN))
            deadline = loop.time() + _SETTLE_LIMIT
            # Until one succeeds, an earlier transaction may be open and the log's end unknown.
            while not await self._transaction(commit=False) and loop.time() < deadline:
                continue
        finally:
            await self._drop_producer()

    async def _transaction(self, *, commit: bool) -> bool:
        """Run one transaction; return True if it was committed or aborted as requested."""
        count = self._rng.randint(1, _LARGEST)
        messages = self._again + [
            self._author.next() for _ in range(max(1, count - len(self._again)))
        ]
        self._again = messages
        try:
            async with asyncio.timeout(_REPLY_LIMIT):
                # A new producer with the same id aborts its predecessor's open transaction.
                if self._producer is None:
                    self._producer = await self._connect()
                await self._producer.begin_transaction()
                promises = await self._send(self._producer, messages)
                await asyncio.sleep(self._rng.uniform(0, _OPEN))
                if not commit:
                    await self._producer.abort_transaction()
                    self.aborted += 1
                    return True
                # If the commit fails, only messages with a source can be sent again.
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
        # Every message must be in the log, even if its transaction is aborted.
        replies = await asyncio.gather(*futures)
        return [
            Acknowledged((reply.partition, reply.offset), message.source, message.sequence)
            for message, reply in zip(messages, replies, strict=True)
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
            # Also when a timeout cancels it.
            await stop_producer(producer)
            raise
        return producer

    async def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError):
                await stop_producer(producer)
