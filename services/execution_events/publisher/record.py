"""A record as the publisher makes it, before it has an origin."""

import time
from typing import Self

import msgspec

from execution_events import wire
from execution_events.events import Occurrence

HOLD_MS = 30 * 24 * 3600 * 1000
"""Milliseconds after its first attempt in which a record may be sent again: half of the time for
which consumers remember a source that sends nothing."""


def now_ms() -> int:
    """Return the time of the system's clock, in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """One occurrence, encoded. `timestamp`, when it was made, is in ms since the Unix epoch."""

    key: bytes
    value: bytes
    traceparent: str | None
    timestamp: int

    @classmethod
    def of(cls, occurrence: Occurrence, traceparent: str | None = None) -> Self:
        """The record that carries `occurrence`, made now."""
        key, value = wire.encode(occurrence)
        return cls(key, value, traceparent, time.time_ns() // 1_000_000)
