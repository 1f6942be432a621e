"""A record as the publisher makes it, before it has an origin."""

import time
from typing import Self

import msgspec

from execution_events import wire
from execution_events.events import Occurrence


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """One occurrence, encoded. `timestamp` is in milliseconds since the Unix epoch."""

    key: bytes
    value: bytes
    traceparent: str | None
    timestamp: int

    @classmethod
    def of(cls, occurrence: Occurrence, traceparent: str | None = None) -> Self:
        """The record that carries `occurrence`, made now."""
        key, value = wire.encode(occurrence)
        return cls(key, value, traceparent, time.time_ns() // 1_000_000)
