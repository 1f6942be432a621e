"""The disk of one process, slow or hung: its fsync is a preloaded one, compiled when needed."""

import asyncio
import shutil
import sys
from pathlib import Path

_SOURCE = Path(__file__).with_name("slow_fsync.c")
_HUNG = "hung"


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def missing() -> str | None:
    """Why this machine cannot slow a process's fsync, None if it can."""
    if sys.platform != "linux":
        return "fsync is preloaded on Linux"
    return None if _compiler() is not None else "a C compiler is missing: apt-get install gcc"


class ProcessDisk:
    """What fsync and fdatasync do in the processes that are started by `command`."""

    def __init__(self, directory: Path) -> None:
        self._library = directory / "slow_fsync.so"
        self._file = directory / "fsync"

    async def build(self) -> None:
        """Compile the library; `command` needs it."""
        compiler = _compiler()
        assert compiler is not None
        process = await asyncio.create_subprocess_exec(
            *(compiler, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(_SOURCE), "-ldl")
        )
        if await process.wait():
            raise RuntimeError(f"{compiler} failed")

    @property
    def command(self) -> list[str]:
        """The words before a command that has this disk."""
        return ["env", f"LD_PRELOAD={self._library}", f"FAULTS_FSYNC={self._file}"]

    def slow(self, seconds: float) -> None:
        """Have each call from now on take so long."""
        self._set(str(round(seconds * 1000)))

    def hang(self) -> None:
        """Let no call return from now on."""
        self._set(_HUNG)

    def mend(self) -> None:
        """Let all calls return that hang, and be as quick as ever."""
        self._file.unlink(missing_ok=True)

    def _set(self, text: str) -> None:
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(text)
        unfinished.rename(self._file)
