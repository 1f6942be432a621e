"""The record of an event, from its encoding to its acknowledgement by Kafka."""

from typing import Self

import msgspec

from execution_events import wire
from execution_events.clock import now_ms
from execution_events.events import Occurrence

HOLD_MS = 30 * 24 * 3600 * 1000
"""Milliseconds after its first attempt during which a record may be sent again: half the time that
consumers remember an idle source."""
UNASSIGNED = -1
"""The partition of a record that has none yet."""


class PendingRecord(msgspec.Struct, gc=False):
    """One occurrence, encoded, that Kafka has not acknowledged yet.

    Times are in milliseconds since the Unix epoch. The delivery assigns the last three fields
    before it sends the record: `sequence` (`ce_sequence`), which strictly increases within a
    partition; `partition`; and `attempted_at`, which is not later than the first attempt.
    """

    key: bytes
    value: bytes
    traceparent: str | None
    created_at: int
    sequence: int = 0
    partition: int = UNASSIGNED
    attempted_at: int = 0

    @classmethod
    def of(cls, occurrence: Occurrence, traceparent: str | None = None) -> Self:
        """Encode `occurrence`, created now."""
        key, value = wire.encode(occurrence)
        return cls(key, value, traceparent, now_ms())
