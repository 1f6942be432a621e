"""A false clock for one process, adjustable while it runs, by Debian's preloaded libfaketime."""

from datetime import timedelta
from pathlib import Path

_LIBRARY = "faketime/libfaketimeMT.so.1"
_DIRECTORIES = ("usr/lib/*/", "usr/lib/", "usr/local/lib/")


def _library() -> Path | None:
    found = (path for each in _DIRECTORIES for path in Path("/").glob(each + _LIBRARY))
    return next(found, None)


def missing() -> str | None:
    """Return the reason why this machine cannot shift a process's clock, None if it can."""
    if _library() is not None:
        return None
    return "libfaketime is missing: apt-get install faketime"


class ProcessClock:
    """The clock of processes started with `command`, `shift` from the real time.

    The monotonic clock, and so every timeout, is unaffected.
    """

    def __init__(self, file: Path, shift: timedelta) -> None:
        self._file = file
        self.move(shift)

    @property
    def command(self) -> list[str]:
        """The prefix of a command that runs on this clock."""
        return [
            "env",
            f"LD_PRELOAD={_library()}",
            f"FAKETIME_TIMESTAMP_FILE={self._file}",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "NO_FAKE_STAT=1",
        ]

    def move(self, shift: timedelta) -> None:
        """Set the clock; running processes see the change immediately."""
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(f"{round(shift.total_seconds()):+d}\n")
        unfinished.rename(self._file)
