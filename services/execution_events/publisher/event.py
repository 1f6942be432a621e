"""The event of a worker, its bounds, and its conversion to an occurrence."""

from datetime import UTC, datetime

import msgspec

from execution_events import events
from execution_events.errors import EventError
from execution_events.events import NORMAL, Occurrence
from execution_events.publisher.naming import event_name

_match_execution_id = events.EXECUTION_ID.fullmatch
_TEXT_MAX = events.TEXT_MAX_CHARACTERS
# A character has four bytes at most.
_NAME_SHORT = events.NAME_MAX_BYTES // 4
_MESSAGE_SHORT = events.MESSAGE_MAX_BYTES // 4


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`count` new occurrences reported by an action on an element of an execution.

    Events of one execution and namespace with the same `name` are recurrences of one event. Fields
    that are None are filled in: `name` from all other texts, so that events recur if they differ
    only in times and count, also from another process or host; `object_namespace` with the
    namespace, `last_timestamp` with the time of publishing, and `first_timestamp` with the last.
    Timestamps must have a time zone. Reasons are written `<zh>##<CamelCase>`, messages
    `<zh> ## <en>`. The bounds are checked when the event is published.
    """

    execution_id: str
    namespace: str
    object_name: str
    reason: str
    message: str = ""
    elem_type: str
    elem_id: str
    action_name: str
    name: str | None = None
    object_namespace: str | None = None
    type: str = NORMAL
    first_timestamp: datetime | None = None
    last_timestamp: datetime | None = None
    count: int = 1


def timestamps_of(event: Event) -> tuple[datetime, datetime]:
    """Return the first and last timestamp of `event` in UTC; None becomes the current time.

    A first timestamp in the future also becomes the last, unless that is given: a clock that was
    set back costs no event. Raises `EventError` outside the bounds of a record.
    """
    if event.last_timestamp is None:
        last = datetime.now(UTC)
        if event.first_timestamp is None:
            return last, last
        first = _utc("first_timestamp", event.first_timestamp)
        return first, max(first, last)
    last = _utc("last_timestamp", event.last_timestamp)
    if event.first_timestamp is None:
        return last, last
    first = _utc("first_timestamp", event.first_timestamp)
    if first > last:
        raise EventError("first_timestamp: after last_timestamp")
    return first, last


def count_of(event: Event) -> int:
    """Return the count of `event`; raises `EventError` outside the bounds of a record."""
    count = event.count
    # A bool is an int, but JSON encodes it differently.
    if type(count) is not int or not 1 <= count <= events.RECORD_COUNT_MAX:
        raise EventError("count: not a whole number from 1 to 2^31-1")
    return count


def occurrence_of(event: Event) -> Occurrence:
    """Return the occurrence of `event`, which `wire.encode` and `wire.decode` reproduce.

    Raises `EventError` for a field outside the bounds of a record.
    """
    first, last = timestamps_of(event)
    count = count_of(event)
    execution_id = _execution_id(event.execution_id)
    namespace = _name("namespace", event.namespace)
    object_name = _name("object_name", event.object_name)
    object_namespace = (
        namespace
        if event.object_namespace is None
        else _name("object_namespace", event.object_namespace)
    )
    reason = _text("reason", event.reason)
    kind = _text("type", event.type)
    elem_type = _text("elem_type", event.elem_type)
    elem_id = _text("elem_id", event.elem_id)
    action_name = _text("action_name", event.action_name)
    # Checked last: a message of the catalogue contains other fields, whose errors come first.
    message = _message(event.message)
    if event.name is None:
        name = event_name(
            execution_id=execution_id,
            namespace=namespace,
            object_namespace=object_namespace,
            object_name=object_name,
            reason=reason,
            message=message,
            type=kind,
            elem_type=elem_type,
            elem_id=elem_id,
            action_name=action_name,
        )
    else:
        name = _name("name", event.name)
    return Occurrence(
        execution_id=execution_id,
        namespace=namespace,
        name=name,
        object_name=object_name,
        object_namespace=object_namespace,
        reason=reason,
        message=message,
        first_timestamp=first,
        last_timestamp=last,
        count=count,
        type=kind,
        elem_type=elem_type,
        elem_id=elem_id,
        action_name=action_name,
    )


def _utc(field: str, moment: datetime) -> datetime:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise EventError(f"{field}: not a datetime with a time zone")
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:
        utc = None
    if utc is None or utc.year < events.TIMESTAMP_MIN.year:
        raise EventError(f"{field}: not from 1970 to 9999 in UTC")
    return utc


def _execution_id(value: str) -> str:
    text = value if type(value) is str else _clean("execution_id", value)
    if not _match_execution_id(text):
        raise EventError("execution_id: not 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    return text


# Each check begins with the most common case, because it runs for every event.


def _name(field: str, value: str) -> str:
    if type(value) is str and 0 < len(value) <= _NAME_SHORT and value.isprintable():
        return value
    text = _clean(field, value)
    if not text or _bytes(text) > events.NAME_MAX_BYTES:
        raise EventError(f"{field}: not 1 to {events.NAME_MAX_BYTES} bytes")
    return text


def _text(field: str, value: str) -> str:
    if type(value) is str and 0 < len(value) <= _TEXT_MAX and value.isprintable():
        return value
    text = _clean(field, value)
    if not text or len(text) > events.TEXT_MAX_CHARACTERS:
        raise EventError(f"{field}: not 1 to {events.TEXT_MAX_CHARACTERS} characters")
    return text


def _message(value: str) -> str:
    if type(value) is str and len(value) <= _MESSAGE_SHORT and value.isprintable():
        return value
    text = _clean("message", value)
    if _bytes(text) > events.MESSAGE_MAX_BYTES:
        raise EventError(f"message: more than {events.MESSAGE_MAX_BYTES} bytes")
    return text


def _clean(field: str, value: str) -> str:
    """Return `value` as a plain string that UTF-8 can encode and PostgreSQL can store."""
    if type(value) is not str:
        if not isinstance(value, str):
            raise EventError(f"{field}: not a string")
        # The codec accepts no subclass of str except enumerations.
        value = str.__str__(value)
    if "\0" in value:
        raise EventError(f"{field}: contains a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise EventError(f"{field}: contains an unpaired surrogate") from None
    return value


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
