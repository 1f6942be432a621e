"""CPU seconds and MiB of memory of processes, from /proc."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

_POLL_INTERVAL = 0.01
"""Seconds between two readings of a process's memory."""
_TICK = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds; usually 10 ms."""
# Positions after the command's name in /proc/<pid>/stat.
_PARENT, _OWN, _WAITED = 1, slice(11, 13), slice(13, 15)


def cpu(pid: int) -> float:
    """Return the user and system seconds of all threads of a process."""
    return sum(map(int, _stat(pid)[_OWN])) * _TICK


def cpu_of_tree(pid: int) -> float:
    """Return the seconds of a process and its children, ended ones included."""
    seconds = cpu(pid) + sum(map(int, _stat(pid)[_WAITED])) * _TICK
    for child in _children(pid):
        try:
            seconds += cpu(child)
        except FileNotFoundError:
            continue  # The child has ended.
    return seconds


def memory(pid: int, what: str = "VmRSS") -> float:
    """Return a process's memory in MiB: `VmRSS` is the current value, `VmHWM` the peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(f"{what}:")]
    return int(line.split()[1]) / 1024


class Growth:
    """MiB of a process at the start and at the peak since."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before = self.peak = memory(pid)

    @property
    def grown(self) -> float:
        return self.peak - self.before

    def update(self) -> None:
        self.peak = max(self.peak, memory(self._pid))


@asynccontextmanager
async def growth(pid: int) -> AsyncIterator[Growth]:
    """Track the growth of a process while the context is open."""
    found = Growth(pid)

    async def watch() -> None:
        while True:
            found.update()
            await asyncio.sleep(_POLL_INTERVAL)

    watching = asyncio.create_task(watch())
    try:
        yield found
        found.update()
    finally:
        watching.cancel()


def _children(pid: int) -> Iterable[int]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(_stat(int(process.name))[_PARENT]) == pid:
                yield int(process.name)
        except (FileNotFoundError, ProcessLookupError):
            continue


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
