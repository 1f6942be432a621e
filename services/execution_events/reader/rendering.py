"""Events as the API writes them: compact JSON, keys in a fixed order, whole seconds."""

from collections.abc import Iterable
from datetime import datetime

import msgspec

from execution_events.store.listing import ListedEvent

_encoder = msgspec.json.Encoder()


class _Ref(msgspec.Struct, gc=False):
    name: str
    namespace: str


class _Event(msgspec.Struct, gc=False, rename="camel"):
    metadata: _Ref
    involved_object: _Ref
    reason: str
    message: str
    first_timestamp: str
    last_timestamp: str
    count: int
    type: str
    elem_type: str
    elem_id: str
    action_name: str


def render_events(events: Iterable[ListedEvent]) -> bytes:
    """The array of design section 5, byte for byte."""
    return _encoder.encode([_body(event) for event in events])


def _body(event: ListedEvent) -> _Event:
    return _Event(
        metadata=_Ref(event.name, event.namespace),
        involved_object=_Ref(event.object_name, event.object_namespace),
        reason=event.reason,
        message=event.message,
        first_timestamp=_seconds(event.first_timestamp),
        last_timestamp=_seconds(event.last_timestamp),
        count=event.count,
        type=event.type,
        elem_type=event.elem_type,
        elem_id=event.elem_id,
        action_name=event.action_name,
    )


def _seconds(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
