"""Progress of long work, on the last line of a terminal and nowhere else."""

import sys
import time

_INTERVAL = 0.1
"""Seconds between two writings of the line."""


class Progress:
    """A line that is written again as work goes on."""

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._next = 0.0
        self._written = False

    def show(self, done: int, what: str = "done") -> None:
        """Say how much is done, where it is time to."""
        if self._terminal and time.monotonic() >= self._next:
            of = "" if self._total is None else f" of {self._total}"
            print(f"\r\033[K{done}{of} {what}", end="", file=sys.stderr, flush=True)
            self._next = time.monotonic() + _INTERVAL
            self._written = True

    def end(self) -> None:
        """Clear the line, for what is printed next."""
        if self._written:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
