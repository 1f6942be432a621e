"""What processes use: seconds of CPU and MiB of memory, as Linux tells them."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

_LOOK = 0.01
"""Seconds between two looks at a process's memory."""
_TICK = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds; usually 10 ms."""
# In what follows the command's name in /proc/<pid>/stat.
_PARENT, _OWN, _WAITED = 1, slice(11, 13), slice(13, 15)


def cpu(pid: int) -> float:
    """Seconds that all threads of a process have used, in user mode and in the kernel."""
    return sum(map(int, _stat(pid)[_OWN])) * _TICK


def cpu_of_tree(pid: int) -> float:
    """The same of a process with its children, also of those that have ended: PostgreSQL's."""
    seconds = cpu(pid) + sum(map(int, _stat(pid)[_WAITED])) * _TICK
    for child in _children(pid):
        try:
            seconds += cpu(child)
        except FileNotFoundError:
            continue  # It has just ended.
    return seconds


def memory(pid: int, what: str = "VmRSS") -> float:
    """`VmRSS`, a process's memory now, or `VmHWM`, the most it has had; in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(f"{what}:")]
    return int(line.split()[1]) / 1024


class Growth:
    """MiB of a process's memory: before, and the most that was seen since."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before = self.peak = memory(pid)

    @property
    def grown(self) -> float:
        return self.peak - self.before

    def look(self) -> None:
        self.peak = max(self.peak, memory(self._pid))


@asynccontextmanager
async def growth(pid: int) -> AsyncIterator[Growth]:
    """How much a process grows while the context is open."""
    found = Growth(pid)

    async def watch() -> None:
        while True:
            found.look()
            await asyncio.sleep(_LOOK)

    watching = asyncio.create_task(watch())
    try:
        yield found
        found.look()
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
