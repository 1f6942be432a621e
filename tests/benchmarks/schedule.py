"""Evenly spaced calls and their delays."""

import asyncio
import time


class Schedule:
    """Calls at `rate` a second: number n is due n / rate seconds after `begun`."""

    def __init__(self, rate: float) -> None:
        self.begun = time.monotonic()
        """The monotonic time of the first call."""
        self.late = 0.0
        """The longest delay in seconds of a call so far."""
        self._rate = rate

    async def wait(self, number: int) -> float:
        """Wait until call `number` is due, and return the monotonic time."""
        due = self.begun + number / self._rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        now = time.monotonic()
        self.late = max(self.late, now - due)
        return now
