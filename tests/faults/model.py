"""A second implementation of the fold, on json and dicts, sharing no code with the product.

Times are integers, microseconds since the Unix epoch.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from tests.faults.record import Headers, LogPosition, LogRecord

Identity = tuple[str, str, str]
"""(execution id, namespace, name)"""
Fields = tuple[str, ...]
"""object name and namespace, reason, message, type, element type and id, action"""
COUNT_MAX = 2**53 - 1
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:[.]([0-9]+))?"
    r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)
_TEXTS = ("reason", "type", "elemType", "elemId", "actionName")


class _Refused(Exception):
    pass


@dataclass
class Part:
    """The fold of one event's records in one partition."""

    count: int
    first: int
    last: int
    fields: Fields
    list_position: int


@dataclass
class Event:
    """One event. An event in several partitions may allow several fields and list positions."""

    count: int
    first: int
    last: int
    fields: set[Fields]
    list_positions: set[int]


@dataclass
class Model:
    """The state that PostgreSQL must hold after the records applied so far."""

    parts: dict[Identity, dict[int, Part]] = field(default_factory=dict)
    letters: dict[LogPosition, tuple[LogRecord, str]] = field(default_factory=dict)
    watermarks: dict[tuple[int, str], int] = field(default_factory=dict)
    counted: dict[LogPosition, int] = field(default_factory=dict)
    """Occurrences that each record added; refused and duplicate records have no entry."""
    origins: dict[tuple[str, int, int], LogPosition] = field(default_factory=dict)
    """Position of each applied record by (source, partition, sequence)."""

    def apply(self, record: LogRecord) -> None:
        """Apply one record; records of one partition must come in log order."""
        origin = None
        try:
            origin = _origin(record.headers)
            content = _content(record)
        except _Refused as refused:
            content, reason = {}, str(refused)
        if origin is not None:
            source, sequence = origin
            key = record.partition, source
            if sequence <= self.watermarks.get(key, -1):
                return
            self.watermarks[key] = sequence
            self.origins[source, record.partition, sequence] = record.position
        if not content:
            self.letters[record.position] = record, reason
            return
        self.counted[record.position] = content["count"]
        parts = self.parts.setdefault(content["identity"], {})
        part = parts.get(record.partition)
        if part is None:
            parts[record.partition] = Part(
                content["count"],
                content["first"],
                content["last"],
                content["fields"],
                content["first"],
            )
            return
        part.count += content["count"]
        part.first = min(part.first, content["first"])
        if content["last"] >= part.last:
            part.last, part.fields = content["last"], content["fields"]

    def events(self) -> dict[Identity, Event]:
        """Return the events, merged over all partitions."""
        found = {}
        for identity, by_partition in self.parts.items():
            parts = list(by_partition.values())
            last = max(part.last for part in parts)
            found[identity] = Event(
                min(sum(part.count for part in parts), COUNT_MAX),
                min(part.first for part in parts),
                last,
                {part.fields for part in parts if part.last == last},
                {part.list_position for part in parts},
            )
        return found


def fold(records: Iterable[LogRecord]) -> Model:
    """Return the model of `records`; those of one partition must come in log order."""
    model = Model()
    for record in records:
        model.apply(record)
    return model


def _origin(headers: Headers) -> tuple[str, int] | None:
    sources = [value for name, value in headers if name == "ce_source"]
    sequences = [value for name, value in headers if name == "ce_sequence"]
    if not sources and not sequences:
        return None
    try:
        [source], [sequence] = sources, sequences
        assert source
        assert sequence
        assert sequence.isdigit()
        return source.decode(), int(sequence)
    except (ValueError, AssertionError):
        raise _Refused("invalid_headers") from None


def _content(record: LogRecord) -> dict[str, Any]:
    if record.value is None:
        raise _Refused("no_value")
    try:
        text = record.value.decode()
    except UnicodeDecodeError:
        raise _Refused("not_utf8") from None
    try:
        body = json.loads(text)
    except ValueError:
        raise _Refused("not_json") from None
    try:
        content = _event(body, record.timestamp * 1000)
    except (AssertionError, KeyError, TypeError, ValueError):
        raise _Refused("invalid_event") from None
    if record.key is not None and record.key.decode(errors="replace") != content["identity"][0]:
        raise _Refused("wrong_key")
    return content


def _event(body: Any, timestamp: int) -> dict[str, Any]:
    name, namespace = _text(body["metadata"]["name"]), _text(body["metadata"]["namespace"])
    reason, kind, elem_type, elem_id, action = (_text(body[text]) for text in _TEXTS)
    involved = body.get("involvedObject", {"name": name.rpartition(".")[0] or name})
    message = body.get("message", "")
    count = body.get("count", 1)
    assert type(count) is int
    assert 1 <= count < 2**31
    assert isinstance(message, str)
    assert "\0" not in message
    last = _time(body["lastTimestamp"]) if "lastTimestamp" in body else timestamp
    first = _time(body["firstTimestamp"]) if "firstTimestamp" in body else last
    assert first <= last
    return {
        "identity": (_text(body["executionId"]), namespace, name),
        "fields": (
            *(_text(involved["name"]), _text(involved.get("namespace", namespace))),
            *(reason, message, kind, elem_type, elem_id, action),
        ),
        "count": count,
        "first": first,
        "last": last,
    }


def _text(value: Any) -> str:
    assert isinstance(value, str)
    assert value
    assert "\0" not in value
    return value


def _time(text: Any) -> int:
    match = _TIME.fullmatch(text)
    assert match is not None
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    assert hour < 24
    assert minute < 60
    assert second < 60
    days = date(year, month, day).toordinal() - date(1970, 1, 1).toordinal()
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second
    if match[8] is not None:
        offset = int(match[9]) * 3600 + int(match[10]) * 60
        seconds -= offset if match[8] == "+" else -offset
    assert seconds >= 0
    return seconds * 1_000_000 + int((match[7] or "0")[:6].ljust(6, "0"))
