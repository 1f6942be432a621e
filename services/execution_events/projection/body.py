"""An event as the API lists it: encoded once, when it is stored, and only joined when it is read.

The bytes are those of design section 5: compact JSON, keys in a fixed order, whole seconds.
"""

from datetime import datetime

import msgspec

from execution_events.projection.fold import FoldedEvent

_encoder = msgspec.json.Encoder()


class Ref(msgspec.Struct, frozen=True, gc=False):
    """What names an event or an object within its execution."""

    name: str
    namespace: str


class Body(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The members of an event's JSON; timestamps are its texts, cut to the second."""

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
    """The JSON of `event`."""
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
    """The JSON that `decode` gives `body` for."""
    return _encoder.encode(body)


def decode(content: bytes) -> Body:
    """What `body_of` has encoded."""
    return _decoder.decode(content)


def _seconds(moment: datetime) -> str:
    # Much cheaper than `isoformat`: a quote, the time to the second, and what is cut.
    return f"{_encoder.encode(moment)[1:20].decode()}Z"
