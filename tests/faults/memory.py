"""A limit on the memory of processes, kept by a supervisor that kills beyond it.

The kernel notes the most that a process has ever had resident, so that no peak falls between two
looks. A control group would do the same, where one may be made.
"""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

_INTERVAL = 0.02  # seconds
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.M)


class _Process(Protocol):
    name: str

    @property
    def pid(self) -> int | None: ...


def missing() -> str | None:
    """Why this machine cannot watch a process's memory, None if it can."""
    return None if sys.platform == "linux" else "the memory of a process is watched on Linux"


def peak(pid: int) -> int:
    """The most bytes that the process has ever had resident; 0 where it is gone."""
    with suppress(OSError):
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


class MemoryLimit:
    """Kills each of `processes` that comes to have more than `limit` bytes, while it is open."""

    def __init__(self, processes: Sequence[_Process], limit: int) -> None:
        self.kills: list[str] = []
        """The names of those that were killed, once for each time."""
        self.peak = 0
        """The most bytes that one of them had."""
        self._processes = processes
        self._limit = limit
        self._killed: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
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
        self._look()

    async def _watch(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_INTERVAL)

    def _look(self) -> None:
        for process in self._processes:
            pid = process.pid
            if pid is None or pid in self._killed:
                continue
            had = peak(pid)
            self.peak = max(self.peak, had)
            if had > self._limit:
                self._killed.add(pid)
                self.kills.append(process.name)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
