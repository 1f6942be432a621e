"""Requests to Kafka independent of the consumer's own, for readiness and lag."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from execution_events.errors import RetryableError
from execution_events.kafka.brokers import LATEST, Address, Brokers
from execution_events.kafka.errors import no_leader_error
from execution_events.settings import Settings


class LogEnd(NamedTuple):
    """The offset after the last stable record of a log, and the monotonic time of the response."""

    offset: int
    at: float


class KafkaProbe:
    """A health check of the assigned partitions' leaders and the group's coordinator."""

    def __init__(
        self, settings: Settings, brokers: Brokers, assigned: Callable[[], Iterable[int]]
    ) -> None:
        self._settings = settings
        self._brokers = brokers
        self._assigned = assigned
        self._ends: dict[int, LogEnd] = {}

    def log_end(self, partition: int) -> LogEnd | None:
        """Return the last known end of the log of `partition`, None before its first response."""
        return self._ends.get(partition)

    def end_offset(self, partition: int) -> int:
        """Return the last known offset after the last stable record of `partition`, else 0."""
        end = self._ends.get(partition)
        return 0 if end is None else end.offset

    async def check(self) -> None:
        """Raise `RetryableError` unless every leader and the coordinator respond."""
        topology = await self._brokers.topology()
        by_leader, leaderless = topology.by_leader(self._assigned())
        address = self._settings.kafka.bootstrap_servers
        errors = [no_leader_error(address, partition) for partition in leaderless]
        results = await asyncio.gather(
            self._brokers.check_coordinator(self._settings.consumer.group),
            *(self._check_leader(leader, numbers) for leader, numbers in by_leader.items()),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, RetryableError):
                errors.append(result)
            elif isinstance(result, BaseException):
                raise result
        if errors:
            text = "; ".join(dict.fromkeys(map(str, errors)))
            raise RetryableError(text, errors[0].cause)

    async def _check_leader(self, leader: Address, partitions: list[int]) -> None:
        ends = await self._brokers.offsets(leader, partitions, LATEST)
        now = time.monotonic()
        self._ends |= {
            number: LogEnd(end, now) for number, end in ends.items() if isinstance(end, int)
        }
        for end in ends.values():
            if isinstance(end, RetryableError):
                raise end
