"""How long each partition stands still while the fault of another is under way."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Protocol, Self

from tests.faults.oracle import Acknowledged

_INTERVAL = 0.2  # seconds


class _Database(Protocol):
    async def progress(self) -> dict[int, int] | None: ...


class Pace:
    """Measures while the context is open.

    A partition stands still while it has a record that was acknowledged, not stored, and nothing is
    stored of it. A look that PostgreSQL does not answer says nothing.
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
        self._stood: dict[int, float] = {}
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

    def stood(self) -> dict[int, float]:
        """The longest time in seconds of each partition, up to now."""
        return {partition: round(seconds, 1) for partition, seconds in self._stood.items()}

    def quiet(self, partitions: Iterable[int]) -> set[int]:
        """Those of `partitions` that no worker has written to meanwhile."""
        return {p for p in partitions if self.ends.get(p, 0) <= self._first.get(p, 0)}

    def look(self, progress: Mapping[int, int], now: float) -> None:
        """Take in the stored offsets as of `now`."""
        self.ends = self._last_acknowledged()
        for partition, end in self.ends.items():
            stored = progress.get(partition, 0)
            if stored >= end or stored != self._progress.get(partition):
                # At once, and not only when it is seen to move again.
                self._since[partition] = now
            self._progress[partition] = stored
            stood = now - self._since[partition]
            self._stood[partition] = max(self._stood.get(partition, 0.0), stood)

    def _last_acknowledged(self) -> dict[int, int]:
        ends: dict[int, int] = {}
        for promise in self._acknowledged():
            partition, offset = promise.place
            ends[partition] = max(ends.get(partition, 0), offset + 1)
        return ends

    async def _poll(self) -> None:
        while True:
            progress = await self._database.progress()
            if progress is not None:
                self.look(progress, time.monotonic())
            await asyncio.sleep(_INTERVAL)
