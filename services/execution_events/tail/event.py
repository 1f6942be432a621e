"""An event as the API shows it with `times=micro`."""

import msgspec

from execution_events.bilingual import Lang, half

Key = tuple[str, str]
"""(namespace, name)"""


class Ref(msgspec.Struct, frozen=True, gc=False):
    """The name and namespace of an event or of its involved object."""

    name: str
    namespace: str


class Event(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """An event in its state after its last change.

    Timestamps are texts of one length, with six digits of fraction: they compare like times.
    """

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

    @property
    def key(self) -> Key:
        return self.metadata.namespace, self.metadata.name

    @property
    def reason_code(self) -> str:
        return half(self.reason, "en")


class _Gone(msgspec.Struct):
    metadata: Ref


_event_decoder = msgspec.json.Decoder(Event)
_gone_decoder = msgspec.json.Decoder(_Gone)


def decode_event(data: str) -> Event:
    """Decode the data of a message; raises `msgspec.MsgspecError` for anything but an event."""
    return _event_decoder.decode(data)


def decode_gone(data: str) -> Key:
    """Decode the data of a message of type `gone`; raises `msgspec.MsgspecError`."""
    metadata = _gone_decoder.decode(data).metadata
    return metadata.namespace, metadata.name


def in_language(event: Event, lang: Lang) -> Event:
    """Return the event with one half of its reason and message, as the API's `lang`."""
    if lang == "both":
        return event
    return msgspec.structs.replace(
        event, reason=half(event.reason, lang), message=half(event.message, lang)
    )
