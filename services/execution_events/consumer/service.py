"""The consumer's process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from execution_events.consumer.assignment import Assignment
from execution_events.consumer.client import Client
from execution_events.consumer.failpoints import unarmed
from execution_events.consumer.fetcher import BatchFetcher, Unreadable
from execution_events.consumer.log import read_log
from execution_events.consumer.loop import ConsumeLoop, backoff
from execution_events.consumer.topic import check_topic
from execution_events.errors import RetryableError
from execution_events.management import ConsumerMetrics, serve_management
from execution_events.observability import Logger
from execution_events.settings import Settings
from execution_events.store.batches import BatchWriter, Reach

_log = Logger(__name__)

HEARTBEATS = 10
"""In a session: the others hear by their next one that a member has joined or left."""
_LEAVE_TIMEOUT = 3
"""Seconds to leave the group at a stop."""


async def run_consumer(settings: Settings, stop: asyncio.Event, reach: Reach = unarmed) -> None:
    """Consume until `stop` is set; then finish the batch in hand and leave the group.

    While Kafka or PostgreSQL is away it waits and tries again. Raises `HaltError` when going on
    could lose or double occurrences.
    """
    service = _Service(settings, stop, reach)
    async with (
        BatchWriter(settings.require_database_url(), settings.topic, reach) as writer,
        serve_management(
            settings.management_host,
            settings.management_port,
            service.registry,
            service.readiness,
        ) as management,
    ):
        _log.info("consumer started", topic=settings.topic, management=management)
        consuming = asyncio.create_task(service.consume(writer))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({consuming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({consuming}, timeout=settings.stop_timeout - _LEAVE_TIMEOUT)
            if consuming.done():
                await consuming
            else:
                _log.warning("stopping without the batch in hand")
        finally:
            for task in (consuming, stopping):
                task.cancel()
            await asyncio.gather(consuming, stopping, return_exceptions=True)
    _log.info("consumer stopped")


class _Service:
    def __init__(self, settings: Settings, stop: asyncio.Event, reach: Reach) -> None:
        self._settings = settings
        self._stop = stop
        self._reach = reach
        self._assignment: Assignment | None = None
        self._loop: ConsumeLoop | None = None
        self._problem: str | None = "starting"
        self._unreadable = Unreadable()
        self.registry = CollectorRegistry()
        self._metrics = ConsumerMetrics(self.registry)

    async def consume(self, writer: BatchWriter) -> None:
        """Connect, consume, and begin again with a new client whenever one is of no more use."""
        attempt = 0
        while not self._stop.is_set():
            try:
                await writer.connect()
                await check_topic(self._settings)
                async with self._client() as (client, assignment):
                    self._problem, attempt = None, 0
                    self._assignment = assignment
                    fetcher = BatchFetcher(
                        client,
                        assignment,
                        self._unreadable,
                        self._settings.batch_max_records,
                        self._stop,
                        self._reach,
                    )
                    self._loop = ConsumeLoop(
                        client,
                        assignment,
                        fetcher,
                        writer,
                        self._metrics,
                        partial(read_log, self._settings),
                        self._stop,
                    )
                    await self._loop.run()
            except RetryableError as error:
                self._problem = str(error)
                self._metrics.retries.inc()
                _log.warning("cannot consume yet", error=self._problem, attempt=attempt)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), backoff(attempt))
                attempt += 1
            finally:
                self._assignment = self._loop = None

    async def readiness(self) -> list[str]:
        """Why records are not stored, if they are not."""
        if self._assignment is None or self._loop is None:
            return [self._problem or "starting"]
        if not self._assignment.joined:
            return ["the group has not assigned partitions yet"]
        reasons = [
            f"partition {partition.partition} is halted: {reason}"
            for partition, reason in self._assignment.halted.items()
        ]
        if self._assignment.unseeded():
            reasons.append("the stored offsets of assigned partitions have not been read yet")
        stalled = self._loop.stalled()
        if stalled > self._settings.stall_timeout:
            reasons.append(f"records wait, and none has been stored for {stalled:.0f} s")
        return reasons

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[tuple[Client, Assignment]]:
        client = Client(
            **self._settings.kafka_client(),
            client_id="execution-events-consumer",
            group_id=self._settings.group,
            isolation_level="read_committed",
            # Offsets live in PostgreSQL; one that the log no longer has must be seen.
            enable_auto_commit=False,
            auto_offset_reset="none",
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            metadata_max_age_ms=30_000,
            session_timeout_ms=self._settings.session_timeout * 1000,
            heartbeat_interval_ms=self._settings.session_timeout * 1000 // HEARTBEATS,
            max_poll_interval_ms=self._settings.max_poll_interval * 1000,
        )
        assignment = Assignment(client, self._reach)
        client.subscribe([self._settings.topic], listener=assignment)
        try:
            await client.start()
        except KafkaError as error:
            await client.stop()
            raise RetryableError(f"Kafka: {error}") from error
        try:
            yield client, assignment
        finally:
            # To leave the group takes as long as a rebalance that is under way.
            limit = _LEAVE_TIMEOUT if self._stop.is_set() else None
            try:
                await asyncio.wait_for(client.stop(), limit)
            except Exception as error:
                # All is stored by now. A connection that was just reset raises whatever the event
                # loop's transport does; the group notices by itself that the member has gone.
                _log.warning("the group was not left in order", error=repr(error))
