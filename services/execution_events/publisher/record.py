"""A record as the publisher makes it, before it has an origin."""

import time
from typing import NamedTuple, Self

from execution_events import wire
from execution_events.events import Occurrence


class NewRecord(NamedTuple):
    """One occurrence, encoded. `timestamp` is in milliseconds since the Unix epoch."""

    key: bytes
    value: bytes
    traceparent: str | None
    timestamp: int

    @classmethod
    def of(cls, occurrence: Occurrence, traceparent: str | None = None) -> Self:
        """The record that carries `occurrence`, made now."""
        return cls(*wire.encode(occurrence), traceparent, time.time_ns() // 1_000_000)
