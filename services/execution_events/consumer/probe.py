"""Probe requests to Kafka, apart from the consumer's own: health, and the ends of logs."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable

from execution_events.consumer.log_check import no_leader
from execution_events.errors import RetryableError
from execution_events.kafka.brokers import LATEST, Address, Brokers
from execution_events.settings import Settings


class KafkaProbe:
    """Asks the leaders of the assigned partitions, and the coordinator of the group."""

    def __init__(
        self, settings: Settings, brokers: Brokers, assigned: Callable[[], Iterable[int]]
    ) -> None:
        self._settings = settings
        self._brokers = brokers
        self._assigned = assigned
        self._ends: dict[int, int] = {}

    def end_offset(self, partition: int) -> int:
        """The offset after the last stable record of `partition` when it was last asked, else 0."""
        return self._ends.get(partition, 0)

    async def check(self) -> None:
        """Raise `RetryableError` unless all have answered."""
        topology = await self._brokers.topology()
        by_leader: dict[Address, list[int]] = defaultdict(list)
        errors: list[RetryableError] = []
        for partition in self._assigned():
            if (leader := topology.leaders.get(partition)) is None:
                errors.append(no_leader(self._settings.kafka, partition))
            else:
                by_leader[leader].append(partition)
        asked = await asyncio.gather(
            self._brokers.reach_coordinator(self._settings.consumer.group),
            *(self._ask_leader(leader, numbers) for leader, numbers in by_leader.items()),
            return_exceptions=True,
        )
        for answer in asked:
            if isinstance(answer, RetryableError):
                errors.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
        if errors:
            text = "; ".join(dict.fromkeys(map(str, errors)))
            raise RetryableError(text, errors[0].cause)

    async def _ask_leader(self, leader: Address, partitions: list[int]) -> None:
        answers = await self._brokers.offsets(leader, partitions, LATEST)
        self._ends |= {
            number: answer for number, answer in answers.items() if isinstance(answer, int)
        }
        for answer in answers.values():
            if isinstance(answer, RetryableError):
                raise answer
