"""The consumer's process."""

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from execution_events.backoff import backoff
from execution_events.consumer.assignment import Assignment
from execution_events.consumer.fetcher import BatchFetcher
from execution_events.consumer.log_check import read_log
from execution_events.consumer.loop import ConsumeLoop
from execution_events.consumer.probe import KafkaProbe
from execution_events.consumer.readiness import not_ready_reasons
from execution_events.consumer.reporter import Reporter
from execution_events.consumer.seeder import Seeder
from execution_events.errors import MisconfiguredError, RetryableError
from execution_events.kafka.brokers import Address, Brokers
from execution_events.kafka.codecs import Decoders
from execution_events.kafka.consumer import PartitionedConsumer
from execution_events.kafka.errors import translated
from execution_events.kafka.topic import check_topic
from execution_events.logs import Logger
from execution_events.metrics import ConsumerMetrics
from execution_events.settings import Settings
from execution_events.store.probe import DatabaseProbe
from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.reports import ReportWriter
from execution_events.web.management import serve_management
from execution_events.web.probe import Probe

_log = Logger(__name__)

HEARTBEATS_PER_SESSION = 10
"""Heartbeats per session timeout; a member learns of a rebalance with its next heartbeat."""
_CLIENT_ID = "execution-events-consumer"
_LEAVE_TIMEOUT = 3
"""Seconds to leave the group at a stop."""
_STABLE_TIME = 10
"""Seconds after which a working client's failure counts as the first one again."""


async def run_consumer(settings: Settings, stop: asyncio.Event) -> None:
    """Consume until `stop` is set; then finish the fetched batch and leave the group.

    While Kafka or PostgreSQL is unavailable, it waits and retries. Raises `HaltError` when
    continuing could lose or double-count occurrences, and `MisconfiguredError` when PostgreSQL or
    Kafka refuses its first login.
    """
    url = settings.database.require_url()
    async with (
        Brokers(settings.kafka, "execution-events-probe") as brokers,
        DatabaseProbe(url, writes=True) as database,
        BatchWriter(url, settings.kafka.topic) as writer,
        ReportWriter(url, settings.kafka.topic, f"{_CLIENT_ID}@{socket.gethostname()}") as reports,
    ):
        service = _Service(settings, brokers, database, reports, stop)
        kafka_probe, database_probe = service.probes
        async with (
            kafka_probe.running(),
            database_probe.running(),
            serve_management(
                settings.management, service.registry, service.readiness
            ) as management,
        ):
            _log.info("consumer_started", topic=settings.kafka.topic, management=management)
            consuming = asyncio.create_task(service.consume(writer))
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({consuming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                timeout = settings.stop_timeout - _LEAVE_TIMEOUT
                await asyncio.wait({consuming}, timeout=timeout)
                if not consuming.done():
                    _log.warning("stop_timed_out", seconds=timeout)
                elif not consuming.cancelled():
                    consuming.result()
            finally:
                for task in (consuming, stopping):
                    task.cancel()
                await asyncio.gather(consuming, stopping, return_exceptions=True)
    _log.info("consumer_stopped")


class _Service:
    """A consume loop over one Kafka client, and over a new one after each failure."""

    def __init__(
        self,
        settings: Settings,
        brokers: Brokers,
        database: DatabaseProbe,
        reports: ReportWriter,
        stop: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._brokers = brokers
        self._stop = stop
        self._assignment: Assignment | None = None
        self._loop: ConsumeLoop | None = None
        self._problem = "starting"
        self._joined_at = math.inf
        # Both peers have accepted the login once: a later refusal may be temporary.
        self._admitted = False
        self._failed_at: dict[int, int] = {}
        self._decoders = Decoders(settings.kafka.batch_limit).install()
        self.registry = CollectorRegistry()
        self._metrics = ConsumerMetrics(self.registry)
        self._kafka = KafkaProbe(settings, brokers, self._assigned)
        self._reporter = Reporter(reports, self._kafka.log_end)
        answered = self._metrics.answered
        self.probes = (
            Probe(
                f"Kafka at {settings.kafka.bootstrap_servers}",
                self._kafka.check,
                answered.labels("kafka"),
            ),
            Probe(
                f"PostgreSQL at {database.address}", database.check, answered.labels("postgresql")
            ),
        )

    async def consume(self, writer: BatchWriter) -> None:
        """Connect and consume until `stop` is set; replace a client that has failed."""
        attempt = 0
        while not self._stop.is_set():
            self._joined_at = math.inf
            try:
                await self._consume(writer)
            except RetryableError as error:
                if isinstance(error, MisconfiguredError) and not self._admitted:
                    raise
                if time.monotonic() - self._joined_at > _STABLE_TIME:
                    attempt = 0
                self._problem = str(error)
                self._metrics.retries.labels(error.cause).inc()
                _log.warning("consumer_restarts", error=self._problem, attempt=attempt)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), backoff(attempt))
                attempt += 1
            finally:
                self._assignment = self._loop = None

    async def readiness(self) -> list[str]:
        """Return the reasons why records are not stored; none when the consumer is ready."""
        return not_ready_reasons(
            [probe.problem for probe in self.probes],
            self._assignment,
            self._loop,
            self._problem,
            self._settings.consumer.stall_timeout,
        )

    async def _consume(self, writer: BatchWriter) -> None:
        """Consume over one Kafka client until `stop` is set or the client fails."""
        await writer.connect()
        # One broker that responds: aiokafka would try them one after the other.
        broker = (await self._brokers.topology()).responder
        self._admitted = True
        await check_topic(replace(self._settings.kafka, bootstrap_servers=str(broker)))
        async with self._client(broker) as (client, assignment):
            if self._stop.is_set():
                return
            self._joined_at = time.monotonic()
            self._assignment = assignment
            fetcher = BatchFetcher(
                client, assignment, self._settings.consumer.batch_max_records, self._stop
            )
            seeder = Seeder(
                assignment,
                writer,
                self._metrics,
                partial(read_log, self._settings.kafka, self._decoders),
                self._failed_at,
            )
            self._loop = ConsumeLoop(
                client,
                assignment,
                fetcher,
                seeder,
                writer,
                self._metrics,
                self._kafka.end_offset,
                self._stop,
            )
            reporting = asyncio.create_task(self._reporter.run(client, assignment))
            try:
                await self._loop.run()
            finally:
                reporting.cancel()
                await asyncio.gather(reporting, return_exceptions=True)

    def _assigned(self) -> list[int]:
        assigned = set() if self._assignment is None else self._assignment.assigned
        return sorted(partition.partition for partition in assigned)

    @asynccontextmanager
    async def _client(
        self, broker: Address
    ) -> AsyncIterator[tuple[PartitionedConsumer, Assignment]]:
        """Join the group, unless `stop` is set first; leave it at the end."""
        session_ms = self._settings.consumer.session_timeout * 1000
        client = PartitionedConsumer(
            self._settings.kafka,
            self._decoders,
            bootstrap_servers=str(broker),
            client_id=_CLIENT_ID,
            group_id=self._settings.consumer.group,
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            metadata_max_age_ms=30_000,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // HEARTBEATS_PER_SESSION,
            max_poll_interval_ms=self._settings.consumer.max_poll_interval * 1000,
        )
        assignment = Assignment(client)
        client.subscribe([self._settings.kafka.topic], listener=assignment)
        starting = asyncio.create_task(client.start())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            # Joining takes as long as the group's other members and its coordinator need.
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            yield client, assignment
        except (KafkaError, OSError) as error:
            raise translated(client.address, error) from error
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await client.stop(_LEAVE_TIMEOUT)
