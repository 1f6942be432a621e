"""The record contract: encoding of occurrences as Kafka records, and decoding.

Decoding accepts any bytes: the result is an `Occurrence` within its limits or a
`RecordRefusedError`.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from execution_events import events
from execution_events.errors import RecordRefusedError
from execution_events.events import Occurrence

NO_VALUE = "no_value"
NOT_UTF8 = "not_utf8"
NOT_JSON = "not_json"
INVALID_EVENT = "invalid_event"
WRONG_KEY = "wrong_key"
INVALID_HEADERS = "invalid_headers"
REASONS = frozenset({NO_VALUE, NOT_UTF8, NOT_JSON, INVALID_EVENT, WRONG_KEY, INVALID_HEADERS})
"""The reasons to refuse a record in decoding. Operators and dashboards rely on these names."""
REFUSED_BY_DATABASE = "refused_by_database"
"""The reason of a decoded record that a database constraint refused; as stable as `REASONS`."""

SEQUENCE_MAX = 2**63 - 1
_SEQUENCE_MAX_DIGITS = 19
_CACHE_SIZE = 4096
"""Strings in each cache."""
DEPTH_MAX = 100
"""Maximum nesting of a value. The interpreter's own limit depends on the caller's stack."""

Headers = Sequence[tuple[str, bytes | None]]


class Record(Protocol):
    """A Kafka record.

    `timestamp` is in milliseconds since the Unix epoch, -1 for a record without one.
    """

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


class Origin(msgspec.Struct, frozen=True, gc=False):
    """A record's source and sequence, by which copies of it are dropped.

    `sequence` is strictly increasing within a source and partition.
    """

    source: str
    sequence: int


_Name = Annotated[str, Meta(min_length=1, max_length=events.NAME_MAX_BYTES)]
_Text = Annotated[str, Meta(min_length=1, max_length=events.TEXT_MAX_CHARACTERS)]


class _Ref(msgspec.Struct, frozen=True, gc=False):
    name: _Name
    namespace: _Name


class _Value(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    execution_id: Annotated[str, Meta(pattern=rf"\A{events.EXECUTION_ID.pattern}\Z")]
    metadata: _Ref
    involved_object: _Ref | UnsetType = UNSET
    reason: _Text
    message: Annotated[str, Meta(max_length=events.MESSAGE_MAX_BYTES)] = ""
    first_timestamp: str | UnsetType = UNSET
    last_timestamp: str | UnsetType = UNSET
    count: Annotated[int, Meta(ge=1, le=events.RECORD_COUNT_MAX)] = 1
    type: _Text
    elem_type: _Text
    elem_id: _Text
    action_name: _Text


class _UsualRef(_Ref, frozen=True, gc=False, forbid_unknown_fields=True):
    pass


class _UsualValue(_Value, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A value without unknown fields, as most are.

    The decoder has read all of it, so it is valid UTF-8 and not nested too deeply.
    """

    # The pattern is checked by a cached function, as msgspec calls Python for one here. The length
    # limit bounds that cache's memory.
    execution_id: _Text
    metadata: _UsualRef
    involved_object: _UsualRef | UnsetType = UNSET


class _Shared(dict[str, str]):
    """One object for equal strings, of the last ones.

    A batch then fits the processor's cache better, and asyncpg and the JSON encoder find the UTF-8
    of non-ASCII strings cached on the object. An `lru_cache` takes twice as long.
    """

    def __missing__(self, text: str) -> str:
        if len(self) >= _CACHE_SIZE:
            self.clear()
        self[text] = text
        return text


_shared = _Shared()
_usual_decoder = msgspec.json.Decoder(_UsualValue)
_decoder = msgspec.json.Decoder(_Value)
_encoder = msgspec.json.Encoder()

TIMESTAMP_FORMAT = "a time from 1970 to 9999 like 2026-01-31T23:59:59Z"
"""The input of `parse_timestamp`, for error messages."""
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_SPECVERSION = ("ce_specversion", b"1.0")
_TYPE = ("ce_type", b"execution-events.occurrence.v1")
_CONTENT_TYPE = ("content-type", b"application/json")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHORT_NAME = events.NAME_MAX_BYTES // 4
_SHORT_MESSAGE = events.MESSAGE_MAX_BYTES // 4


def encode(occurrence: Occurrence) -> tuple[bytes, bytes]:
    """Return the key and value of the record for `occurrence`.

    `decode` returns an equal occurrence if `occurrence` is within its limits and its first
    timestamp is not after its last.
    """
    first, last = occurrence.first_timestamp, occurrence.last_timestamp
    last_text = _format_timestamp(last)
    value = _Value(
        execution_id=occurrence.execution_id,
        metadata=_Ref(occurrence.name, occurrence.namespace),
        involved_object=_Ref(occurrence.object_name, occurrence.object_namespace),
        reason=occurrence.reason,
        message=occurrence.message,
        first_timestamp=last_text if first is last else _format_timestamp(first),
        last_timestamp=last_text,
        count=occurrence.count,
        type=occurrence.type,
        elem_type=occurrence.elem_type,
        elem_id=occurrence.elem_id,
        action_name=occurrence.action_name,
    )
    return occurrence.execution_id.encode(), _encoder.encode(value)


def encode_headers(
    source: str, sequence: int, traceparent: str | None = None
) -> list[tuple[str, bytes]]:
    """Return a new list of all headers of a record.

    The sequence is also the CloudEvents id, so a source must not use a sequence twice, not even
    in different partitions. `decode_origin` returns both if they are within their limits.
    """
    decimal = b"%d" % sequence
    headers = [
        _SPECVERSION,
        _TYPE,
        ("ce_source", source.encode()),
        ("ce_id", decimal),
        ("ce_sequence", decimal),
        _CONTENT_TYPE,
    ]
    if traceparent is not None:
        headers.append(("traceparent", traceparent.encode()))
    return headers


def decode(key: bytes | None, value: bytes | None, timestamp: int) -> Occurrence:
    """Decode a record; `timestamp` is the record's, in milliseconds.

    Raises `RecordRefusedError` for every record outside the contract, and no other error.
    """
    body = _decode_value(value)
    if key is not None and key != body.execution_id.encode():
        raise RecordRefusedError(WRONG_KEY, "expected the record's key to be its executionId")
    name, namespace = body.metadata.name, body.metadata.namespace
    if body.involved_object is UNSET:
        object_name, object_namespace = events.object_of(name), namespace
    else:
        object_name, object_namespace = body.involved_object.name, body.involved_object.namespace
    first, last = _timestamps(body, timestamp)
    # The number of characters is checked already, and one has at most 4 bytes.
    if (
        len(name) > _SHORT_NAME
        or len(namespace) > _SHORT_NAME
        or len(object_name) > _SHORT_NAME
        or len(object_namespace) > _SHORT_NAME
        or len(body.message) > _SHORT_MESSAGE
    ):
        _check_bytes("metadata.name", name, events.NAME_MAX_BYTES)
        _check_bytes("metadata.namespace", namespace, events.NAME_MAX_BYTES)
        _check_bytes("involvedObject.name", object_name, events.NAME_MAX_BYTES)
        _check_bytes("involvedObject.namespace", object_namespace, events.NAME_MAX_BYTES)
        _check_bytes("message", body.message, events.MESSAGE_MAX_BYTES)
    occurrence = Occurrence(
        execution_id=_shared[body.execution_id],
        namespace=_shared[namespace],
        name=name,
        object_name=_shared[object_name],
        object_namespace=_shared[object_namespace],
        reason=_shared[body.reason],
        message=body.message,
        first_timestamp=first,
        last_timestamp=last,
        count=body.count,
        type=_shared[body.type],
        elem_type=_shared[body.elem_type],
        elem_id=_shared[body.elem_id],
        action_name=_shared[body.action_name],
    )
    # JSON has one way to write NUL, and most records have no escapes.
    if value is not None and b"\\" in value and b"\\u0000" in value:
        for field in occurrence.__struct_fields__:
            text = getattr(occurrence, field)
            if isinstance(text, str) and "\0" in text:
                raise RecordRefusedError(
                    INVALID_EVENT, f"NUL character in the {field.replace('_', ' ')}"
                )
    return occurrence


def decode_origin(headers: Headers) -> Origin | None:
    """Decode `ce_source` and `ce_sequence`; return None if both are missing.

    Raises `RecordRefusedError` if only one is present, or one is repeated or malformed.
    """
    source = sequence = None
    for name, value in headers:
        if name == "ce_source":
            if source is not None:
                raise _given_twice(name)
            source = value or b""
        elif name == "ce_sequence":
            if sequence is not None:
                raise _given_twice(name)
            sequence = value or b""
    if source is None and sequence is None:
        return None
    if source is None or sequence is None:
        raise RecordRefusedError(
            INVALID_HEADERS, "expected both ce_source and ce_sequence or neither"
        )
    text = _source(source)
    # `bytes.isdigit` accepts ASCII digits alone.
    if len(sequence) <= _SEQUENCE_MAX_DIGITS and sequence.isdigit():
        parsed = int(sequence)
        if parsed <= SEQUENCE_MAX:
            return Origin(text, parsed)
    raise RecordRefusedError(INVALID_HEADERS, "ce_sequence: expected a decimal from 0 to 2^63-1")


@lru_cache(maxsize=_CACHE_SIZE)
def _source(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise RecordRefusedError(INVALID_HEADERS, "ce_source: expected UTF-8") from error
    if not 1 <= len(text) <= events.TEXT_MAX_CHARACTERS or "\0" in text:
        raise RecordRefusedError(
            INVALID_HEADERS, "ce_source: expected 1 to 256 characters without NUL"
        )
    return text


def _given_twice(name: str) -> RecordRefusedError:
    return RecordRefusedError(INVALID_HEADERS, f"{name}: repeated")


def parse_timestamp(text: str) -> datetime | None:
    """Parse a timestamp of the contract, from 1970 to 9999, as UTC truncated to the microsecond.

    Returns None for any other text.
    """
    if _TIMESTAMP.fullmatch(text):
        try:
            # It truncates to the microsecond, as the contract requires.
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is not UTC:
                moment = moment.astimezone(UTC)
        except (ValueError, OverflowError):
            return None
        if moment.year >= events.TIMESTAMP_MIN.year:
            return moment
    return None


@lru_cache(maxsize=_CACHE_SIZE)
def _is_execution_id(text: str) -> bool:
    return events.EXECUTION_ID.fullmatch(text) is not None


def _decode_value(value: bytes | None) -> _Value:
    if value is None:
        raise RecordRefusedError(NO_VALUE, "the record has no value")
    try:
        usual = _usual_decoder.decode(value)
        if _is_execution_id(usual.execution_id):
            return usual
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    return _decode_any_value(value)


def _decode_any_value(value: bytes) -> _Value:
    try:
        # msgspec does not validate the UTF-8 of fields that it ignores.
        if not value.isascii():
            value.decode()
        # Searching for a bracket is much cheaper than counting, and most records have none.
        brackets = value.count(b"{") + (value.count(b"[") if b"[" in value else 0)
        if brackets > DEPTH_MAX and _depth(value) > DEPTH_MAX:
            raise RecordRefusedError(NOT_JSON, f"nested deeper than {DEPTH_MAX} levels")
        return _decoder.decode(value)
    except UnicodeDecodeError as error:
        raise RecordRefusedError(
            NOT_UTF8, f"the value is not UTF-8 at byte {error.start}"
        ) from error
    except msgspec.ValidationError as error:
        raise RecordRefusedError(INVALID_EVENT, str(error)) from error
    except msgspec.MsgspecError as error:
        raise RecordRefusedError(NOT_JSON, str(error)) from error


def _depth(value: bytes) -> int:
    """Return the nesting depth of brackets outside strings."""
    max_depth = depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", value)):
        depth += 1 if bracket in b"[{" else -1
        max_depth = max(max_depth, depth)
    return max_depth


def _timestamps(body: _Value, record_timestamp: int) -> tuple[datetime, datetime]:
    if body.last_timestamp is UNSET:
        last = _record_timestamp(record_timestamp)
    else:
        last = _parse_timestamp("lastTimestamp", body.last_timestamp)
    if body.first_timestamp is UNSET or body.first_timestamp == body.last_timestamp:
        return last, last
    first = _parse_timestamp("firstTimestamp", body.first_timestamp)
    if first > last and body.last_timestamp is not UNSET:
        raise RecordRefusedError(INVALID_EVENT, "firstTimestamp is after lastTimestamp")
    return first, last


def _parse_timestamp(field: str, text: str) -> datetime:
    moment = parse_timestamp(text)
    if moment is None:
        raise RecordRefusedError(INVALID_EVENT, f"Expected {TIMESTAMP_FORMAT} - at `$.{field}`")
    return moment


def _record_timestamp(milliseconds: int) -> datetime:
    try:
        moment = _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        moment = None
    if milliseconds < 0 or moment is None:
        raise RecordRefusedError(
            INVALID_EVENT, "no lastTimestamp, and the record has no timestamp from 1970 to 9999"
        )
    return moment


def _format_timestamp(moment: datetime) -> str:
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return f"{moment.isoformat()[:-6]}Z"


def _check_bytes(field: str, text: str, limit: int) -> None:
    if not text.isascii() and len(text.encode()) > limit:
        raise RecordRefusedError(INVALID_EVENT, f"Expected at most {limit} bytes - at `$.{field}`")
