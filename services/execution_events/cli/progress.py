"""The progress of a long command, on standard error and only on a terminal."""

import sys
import time
from contextlib import suppress

_INTERVAL = 0.1
"""Seconds between two updates of the line."""


class Progress:
    """One line that is overwritten as work proceeds."""

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._next = 0.0
        self._written = False

    def show(self, done: int, what: str = "done") -> None:
        """Update the line, at most ten times a second."""
        if self._terminal and time.monotonic() >= self._next:
            of = "" if self._total is None else f" of {self._total}"
            _overwrite(f"{done}{of} {what}")
            self._next = time.monotonic() + _INTERVAL
            self._written = True

    def end(self) -> None:
        """Clear the line."""
        if self._written:
            _overwrite("")


def _overwrite(line: str) -> None:
    # The terminal may be gone.
    with suppress(OSError):
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
