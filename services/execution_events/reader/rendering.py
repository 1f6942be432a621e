"""Events as the API writes them: compact JSON, keys in a fixed order, whole seconds."""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import msgspec

from execution_events.store.listing import ListedEvent

Format = Literal["json", "lines"]
"""One array, or one event a line."""
Lang = Literal["both", "zh", "en"]
"""The half of reason and message to show."""

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


class Rendering:
    """A list piece by piece: what `add` and then `end` return, joined, is design section 5's body.

    It is no valid JSON before the end.
    """

    def __init__(self, format_: Format, lang: Lang) -> None:
        self._format = format_
        self._lang = lang
        self._separator = b"["

    def add(self, events: Iterable[ListedEvent]) -> bytes:
        bodies = [_body(event, self._lang) for event in events]
        if self._format == "lines":
            return _encoder.encode_lines(bodies)
        if not bodies:
            return b""
        separator, self._separator = self._separator, b","
        return separator + _encoder.encode(bodies)[1:-1]

    def end(self) -> bytes:
        if self._format == "lines":
            return b""
        return b"[]" if self._separator == b"[" else b"]"


def half(bilingual: str, lang: Lang) -> str:
    """`lang`'s part of `<zh>##<en>`, spaces trimmed, the whole where there is no `##`.

    As `first_half` and `second_half` in the database.
    """
    if lang == "both":
        return bilingual
    first, found, second = bilingual.partition("##")
    return (second if found and lang == "en" else first).strip(" ")


def _body(event: ListedEvent, lang: Lang) -> _Event:
    return _Event(
        metadata=_Ref(event.name, event.namespace),
        involved_object=_Ref(event.object_name, event.object_namespace),
        reason=half(event.reason, lang),
        message=half(event.message, lang),
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
