"""A slow or hung disk for one process, by a preloaded fsync that is compiled on demand."""

import asyncio
import shutil
import sys
from pathlib import Path

_SOURCE = Path(__file__).with_name("slow_fsync.c")
_HUNG = "hung"


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def missing() -> str | None:
    """Return the reason why this machine cannot delay a process's fsync, None if it can."""
    if sys.platform != "linux":
        return "fsync can be preloaded on Linux only"
    return None if _compiler() is not None else "a C compiler is missing: apt-get install gcc"


class ProcessDisk:
    """The fsync and fdatasync of processes started with `command`."""

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
        """The prefix of a command that runs on this disk."""
        return ["env", f"LD_PRELOAD={self._library}", f"FAULTS_FSYNC={self._file}"]

    def slow(self, seconds: float) -> None:
        """Delay each later call by `seconds`."""
        self._set(str(round(seconds * 1000)))

    def hang(self) -> None:
        """Block every later call."""
        self._set(_HUNG)

    def repair(self) -> None:
        """Release the blocked calls and end every delay."""
        self._file.unlink(missing_ok=True)

    def _set(self, text: str) -> None:
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(text)
        unfinished.rename(self._file)
