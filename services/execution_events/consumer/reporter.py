"""Reports on this member's partitions, written once a second for `ops.pipeline_v1`."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import NoReturn, Protocol

from aiokafka import TopicPartition

from execution_events.backoff import backoff
from execution_events.consumer.assignment import Assignment
from execution_events.consumer.probe import LogEnd
from execution_events.errors import HaltError, RetryableError
from execution_events.logs import Logger
from execution_events.store.write.reports import PartitionReport, ReportWriter

_log = Logger(__name__)

_INTERVAL = 1
"""Seconds between reports, whether records arrive or not."""


class Fetches(Protocol):
    """The methods of `AIOKafkaConsumer` that tell what its last fetch has found."""

    def last_stable_offset(self, partition: TopicPartition) -> int | None: ...
    def last_poll_timestamp(self, partition: TopicPartition) -> int | None: ...


class Reporter:
    """Reports which partitions this member has, where their logs end, and which are halted.

    A report that fails is logged and tried again; batches neither wait for it nor fail with it.
    """

    def __init__(self, writer: ReportWriter, log_end: Callable[[int], LogEnd | None]) -> None:
        self._writer = writer
        self._log_end = log_end

    async def run(self, client: Fetches, assignment: Assignment) -> NoReturn:
        """Report until cancelled; partitions that are revoked are left to their next owner."""
        failures = 0
        while True:
            await asyncio.sleep(_INTERVAL if not failures else max(_INTERVAL, backoff(failures)))
            reports = list(self._reports(client, assignment))
            if not reports:
                continue
            try:
                await self._writer.write(reports)
            except (RetryableError, HaltError) as error:
                failures += 1
                _log.warning("report_failed", error=str(error), attempt=failures)
            else:
                failures = 0

    def _reports(self, client: Fetches, assignment: Assignment) -> Iterable[PartitionReport]:
        for partition in sorted(assignment.assigned):
            age, offset = min(self._ends(client, partition), default=(None, None))
            yield PartitionReport(
                partition.partition, offset, age, assignment.halted.get(partition)
            )

    def _ends(self, client: Fetches, partition: TopicPartition) -> Iterable[tuple[float, int]]:
        """Yield the known ends of a log, each with its age in seconds.

        Of a paused partition the client learns nothing, and the probe asks every few seconds only.
        """
        fetched, at = client.last_stable_offset(partition), client.last_poll_timestamp(partition)
        if fetched is not None and at is not None:
            yield max(0.0, time.time() - at / 1000), fetched
        probed = self._log_end(partition.partition)
        if probed is not None:
            yield time.monotonic() - probed.at, probed.offset
