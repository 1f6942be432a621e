"""The JSON of an event in the API: encoded when the event is stored, copied when it is read.

Compact, keys in the order of `Body`, timestamps in whole seconds.
"""

from datetime import datetime
from typing import Literal

import msgspec

from execution_events.projection.fold import FoldedEvent

Times = Literal["second", "micro"]
"""The precision of the timestamps to show; bodies are stored with whole seconds."""

_encoder = msgspec.json.Encoder()
# Within a string every quote is escaped, so that these occur as keys alone.
_FIRST = b'"firstTimestamp":"'
_LAST = b'"lastTimestamp":"'
_SECONDS_LENGTH = len("2026-01-31T23:59:59")


class Ref(msgspec.Struct, frozen=True, gc=False):
    """The name and namespace of an event or of its involved object."""

    name: str
    namespace: str


class Body(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """An event's JSON object; timestamps are strings, truncated to the second."""

    metadata: Ref
    involved_object: Ref
    reason: str
    message: str
    first_timestamp: str
    last_timestamp: str
    count: int
    type: str
    elem_type: str
    elem_id: str
    action_name: str


_decoder = msgspec.json.Decoder(Body)


def body_of(event: FoldedEvent) -> bytes:
    """Encode `event`."""
    latest = event.latest
    first, last = event.first_timestamp, latest.last_timestamp
    last_text = _seconds(last)
    return _encoder.encode(
        Body(
            Ref(latest.name, latest.namespace),
            Ref(latest.object_name, latest.object_namespace),
            latest.reason,
            latest.message,
            last_text if first is last else _seconds(first),
            last_text,
            event.count,
            latest.type,
            latest.elem_type,
            latest.elem_id,
            latest.action_name,
        )
    )


def encode(body: Body) -> bytes:
    """Encode `body`; the inverse of `decode`."""
    return _encoder.encode(body)


def decode(content: bytes) -> Body:
    """Decode the result of `body_of` or `encode`."""
    return _decoder.decode(content)


def with_microseconds(body: bytes, first: datetime, last: datetime) -> bytes:
    """Return `body` with six digits of fraction in its timestamps, which are `first` and `last`."""
    end_of_first = body.index(_FIRST) + len(_FIRST) + _SECONDS_LENGTH
    end_of_last = body.index(_LAST, end_of_first) + len(_LAST) + _SECONDS_LENGTH
    return b"%b.%06d%b.%06d%b" % (
        body[:end_of_first],
        first.microsecond,
        body[end_of_first:end_of_last],
        last.microsecond,
        body[end_of_last:],
    )


def _seconds(moment: datetime) -> str:
    # Much cheaper than `isoformat`. The encoder writes a quote, the time to the second, and more.
    return f"{_encoder.encode(moment)[1:20].decode()}Z"
