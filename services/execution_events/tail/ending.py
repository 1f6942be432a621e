"""Settled and quiet, measured in the time under watch."""

from typing import Literal

Ending = Literal["settled", "quiet"]

_NEVER = float("inf")


class Endings:
    """Two clocks that stop while the reader is unavailable: nothing is concluded from its silence.

    Settled: an element has ended, and none has run for `settled_after` seconds. Quiet: no event has
    changed for `quiet_after` seconds. None is never. Times are of a monotonic clock, in seconds.
    """

    def __init__(self, settled_after: float | None, quiet_after: float | None) -> None:
        self._settled = _Clock(settled_after)
        self._quiet = _Clock(quiet_after)
        self._has_ended = False

    def resume(self, now: float) -> None:
        """Go on: the watch is connected."""
        self._settled.run(now)
        self._quiet.run(now)

    def pause(self, now: float) -> None:
        """Stop the clocks: the connection is lost."""
        self._settled.stop(now)
        self._quiet.stop(now)

    def restart(self, now: float) -> None:
        """Begin both times again."""
        self._settled.reset(now)
        self._quiet.reset(now)

    def changed(self, now: float, *, has_ended: bool) -> None:
        """Note a change of an event; `has_ended`: an element has ended and none runs."""
        self._quiet.reset(now)
        if not has_ended or not self._has_ended:
            self._settled.reset(now)
        self._has_ended = has_ended

    def reached(self, now: float) -> Ending | None:
        """Return the ending whose time has come."""
        if self._has_ended and now >= self._settled.due:
            return "settled"
        return "quiet" if now >= self._quiet.due else None

    @property
    def next_due(self) -> float:
        """The earliest time at which an ending can be reached; infinity for none."""
        return min(self._settled.due if self._has_ended else _NEVER, self._quiet.due)


class _Clock:
    """The time since the last reset, without that between `stop` and `run`."""

    def __init__(self, limit: float | None) -> None:
        self._limit = _NEVER if limit is None else limit
        self._elapsed = 0.0
        self._since: float | None = None

    @property
    def due(self) -> float:
        return _NEVER if self._since is None else self._since + self._limit - self._elapsed

    def run(self, now: float) -> None:
        if self._since is None:
            self._since = now

    def stop(self, now: float) -> None:
        if self._since is not None:
            self._elapsed += now - self._since
            self._since = None

    def reset(self, now: float) -> None:
        self._elapsed = 0
        if self._since is not None:
            self._since = now
