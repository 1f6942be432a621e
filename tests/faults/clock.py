"""The clock of one process, wrong or moved while it runs: Debian's faketime, preloaded."""

from datetime import timedelta
from pathlib import Path

_LIBRARY = "faketime/libfaketimeMT.so.1"
_PLACES = ("usr/lib/*/", "usr/lib/", "usr/local/lib/")


def _library() -> Path | None:
    return next((found for place in _PLACES for found in Path("/").glob(place + _LIBRARY)), None)


def missing() -> str | None:
    """Why this machine cannot move a process's clock, None if it can."""
    if _library() is not None:
        return None
    return "libfaketime is missing: apt-get install faketime"


class ProcessClock:
    """The clock of the processes that are started by `command`, `shift` from the true one.

    Time-outs go by another clock, which stays as it is.
    """

    def __init__(self, file: Path, shift: timedelta) -> None:
        self._file = file
        self.move(shift)

    @property
    def command(self) -> list[str]:
        """The words before a command that runs by this clock."""
        return [
            "env",
            f"LD_PRELOAD={_library()}",
            f"FAKETIME_TIMESTAMP_FILE={self._file}",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "NO_FAKE_STAT=1",
        ]

    def move(self, shift: timedelta) -> None:
        """Set the clock, at once and of processes that run."""
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(f"{round(shift.total_seconds()):+d}\n")
        unfinished.rename(self._file)
