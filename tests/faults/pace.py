"""Stall times of partitions during the fault of another partition."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType
from typing import Protocol, Self

from tests.faults.episode import Episode
from tests.faults.oracle import Acknowledged

OTHERS_LIMIT = 10
"""Seconds for which a partition may stall because of another."""
_INTERVAL = 0.2  # seconds


class _Database(Protocol):
    async def progress(self) -> dict[int, int] | None: ...


class Pace:
    """A measurement of stall times while the context is open.

    A partition stalls while it has an acknowledged record that is not stored, and its stored offset
    does not move. A poll that PostgreSQL does not answer is ignored.
    """

    def __init__(
        self, database: _Database, acknowledged: Callable[[], Iterable[Acknowledged]]
    ) -> None:
        self.ends: dict[int, int] = {}
        """The offset after the last acknowledged record of each partition."""
        self._database = database
        self._acknowledged = acknowledged
        self._progress: dict[int, int] = {}
        self._since: dict[int, float] = {}
        self._longest: dict[int, float] = {}
        self._first: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._first = self._last_acknowledged()
        self._task = asyncio.create_task(self._poll())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def stalls(self) -> dict[int, float]:
        """Return the longest stall of each partition so far, in seconds."""
        return {partition: round(seconds, 1) for partition, seconds in self._longest.items()}

    def idle(self, partitions: Iterable[int]) -> set[int]:
        """Return those of `partitions` without a new acknowledged record."""
        return {p for p in partitions if self.ends.get(p, 0) <= self._first.get(p, 0)}

    def record(self, progress: Mapping[int, int], now: float) -> None:
        """Record the stored offsets at the time `now`."""
        self.ends = self._last_acknowledged()
        for partition, end in self.ends.items():
            stored = progress.get(partition, 0)
            if stored >= end or stored != self._progress.get(partition):
                # A stall counts while it lasts, not only once it has ended.
                self._since[partition] = now
            self._progress[partition] = stored
            stall = now - self._since[partition]
            self._longest[partition] = max(self._longest.get(partition, 0.0), stall)

    def _last_acknowledged(self) -> dict[int, int]:
        ends: dict[int, int] = {}
        for promise in self._acknowledged():
            partition, offset = promise.position
            ends[partition] = max(ends.get(partition, 0), offset + 1)
        return ends

    async def _poll(self) -> None:
        while True:
            progress = await self._database.progress()
            if progress is not None:
                self.record(progress, time.monotonic())
            await asyncio.sleep(_INTERVAL)


def pace_of(episode: Episode) -> Pace:
    """Return a measurement of the records of an episode's workers."""
    return Pace(episode.database, lambda: episode.load.acknowledged)


def check_others(episode: Episode, pace: Pace, partitions: Collection[int]) -> None:
    """Record the stalls of `partitions`, which the fault should not affect.

    A stall longer than `OTHERS_LIMIT` is a violation.
    """
    stalls = pace.stalls()
    episode.evidence["others stood still"] = max(stalls.get(p, 0.0) for p in partitions)
    episode.violations += [
        f"partition {partition} stalled for {stalls[partition]} s during the fault of another"
        for partition in sorted(partitions)
        if stalls.get(partition, 0.0) > OTHERS_LIMIT
    ]
    if idle := pace.idle(partitions):
        episode.inconclusive = f"nothing was written to partitions {sorted(idle)}"
