"""The JSON of an event in the API: encoded when the event is stored, copied when it is read.

Compact, keys in the order of `Body`, timestamps in whole seconds.
"""

from datetime import datetime

import msgspec

from execution_events.projection.fold import FoldedEvent

_encoder = msgspec.json.Encoder()


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


def _seconds(moment: datetime) -> str:
    # Much cheaper than `isoformat`. The encoder writes a quote, the time to the second, and more.
    return f"{_encoder.encode(moment)[1:20].decode()}Z"
