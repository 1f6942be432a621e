"""A limit on the memory of processes: a supervisor kills a process that exceeds it.

The kernel records the peak of a process's resident memory, so polling misses none. A control group
would do the same, but needs the right to create one.
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
    """Return the reason why this machine cannot measure a process's memory, None if it can."""
    return None if sys.platform == "linux" else "the memory of a process is measured on Linux only"


def peak(pid: int) -> int:
    """Return the peak of a process's resident memory in bytes, 0 if it has ended."""
    with suppress(OSError):
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


class MemoryLimit:
    """A limit of `limit` bytes for each of `processes`, enforced while the context is open."""

    def __init__(self, processes: Sequence[_Process], limit: int) -> None:
        self.kills: list[str] = []
        """The name of the killed process, for each kill."""
        self.peak = 0
        """The largest peak of any process, in bytes."""
        self._processes = processes
        self._limit = limit
        self._killed: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
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
        self._check()

    async def _poll(self) -> None:
        while True:
            self._check()
            await asyncio.sleep(_INTERVAL)

    def _check(self) -> None:
        for process in self._processes:
            pid = process.pid
            if pid is None or pid in self._killed:
                continue
            resident = peak(pid)
            self.peak = max(self.peak, resident)
            if resident > self._limit:
                self._killed.add(pid)
                self.kills.append(process.name)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
