"""The golden records of `schemas/golden`, whose README entry states the notation."""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from execution_events.events import Occurrence
from execution_events.wire import Origin

SCHEMAS = Path(__file__).parents[2] / "schemas"

Parts = str | Mapping[str, Any] | Sequence["str | Mapping[str, Any]"]


class KafkaRecord(NamedTuple):
    """A record as the consumer reads it."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int = 0
    partition: int = 0
    offset: int = 0


class Golden(NamedTuple):
    """A record, and its result in every version of the consumer.

    `beyond_schema` names the rule that refuses the value where the JSON Schema cannot.
    """

    name: str
    record: KafkaRecord
    origin: Origin | None
    occurrence: Occurrence | None
    refused: str | None
    beyond_schema: str | None


class KeyPartition(NamedTuple):
    """The partition of a key by murmur2, by the number of partitions."""

    key: bytes
    hash: int
    partitions: Mapping[int, int]


class Named(NamedTuple):
    """A record without `metadata.name`, and the name that its producer gives it."""

    case: str
    record: dict[str, Any]
    name: str


def load(file: str) -> list[Golden]:
    """Load the records of one file."""
    document = json.loads((SCHEMAS / "golden" / file).read_text(encoding="utf-8"))
    cases = document["accepted"] + document.get("refused", [])
    return [_golden(document.get("base", {}), case) for case in cases]


def records() -> list[Golden]:
    """Load all golden records."""
    return load("seed.json") + load("records.json") + load("published.json")


def key_partitions() -> list[KeyPartition]:
    """Load the keys and their partitions."""
    document = json.loads((SCHEMAS / "golden" / "partitions.json").read_text(encoding="utf-8"))
    return [
        KeyPartition(
            case["key"].encode(),
            case["hash"],
            {int(number): partition for number, partition in case["partitions"].items()},
        )
        for case in document["keys"]
    ]


def names() -> list[Named]:
    """Load the records and their names."""
    document = json.loads((SCHEMAS / "golden" / "names.json").read_text(encoding="utf-8"))
    return [Named(**case) for case in document["names"]]


def _golden(base: Mapping[str, Any], case: Mapping[str, Any]) -> Golden:
    whole = {**base, **case}
    origin = case.get("origin")
    refused = case.get("refused")
    return Golden(
        name=case["name"],
        record=KafkaRecord(
            key=_bytes(whole["key"]),
            value=_value(whole),
            headers=tuple((name, _bytes(value)) for name, value in whole["headers"]),
            timestamp=whole["timestamp"],
        ),
        origin=Origin(_text(origin[0]), origin[1]) if origin else None,
        occurrence=None if refused else _occurrence(base, case),
        refused=refused,
        beyond_schema=case.get("beyond_schema"),
    )


def _value(case: Mapping[str, Any]) -> bytes | None:
    encoding = case.get("encoding", "utf-8")
    if "value" in case:
        return _bytes(case["value"], encoding)
    parts: list[str | Mapping[str, Any]] = []
    for name, fragment in {**case["members"], **case.get("set", {})}.items():
        if fragment is not None:
            parts += ["," if parts else "{", f'"{name}":', *_list(fragment)]
    if "append" in case:
        parts += [",", *_list(case["append"])]
    value = b"".join(_part(part, encoding) for part in [*parts, "}"])
    return (_bytes(case.get("prefix", "")) or b"") + value + (_bytes(case.get("suffix", "")) or b"")


def _occurrence(base: Mapping[str, Any], case: Mapping[str, Any]) -> Occurrence:
    fields = {**base.get("occurrence", {}), **case.get("occurrence", {})}
    for name, field in fields.items():
        if name.endswith("_timestamp"):
            fields[name] = datetime.fromisoformat(field)
        elif name != "count":
            fields[name] = _text(field)
    return Occurrence(**fields)


def _text(parts: Parts) -> str:
    return b"".join(_part(part, "utf-8") for part in _list(parts)).decode()


def _bytes(parts: Parts | None, encoding: str = "utf-8") -> bytes | None:
    return None if parts is None else b"".join(_part(part, encoding) for part in _list(parts))


def _list(parts: Parts) -> Sequence[str | Mapping[str, Any]]:
    return [parts] if isinstance(parts, str | Mapping) else parts


def _part(part: str | Mapping[str, Any], encoding: str) -> bytes:
    if isinstance(part, str):
        return part.encode(encoding)
    if "base64" in part:
        return base64.b64decode(part["base64"], validate=True)
    text, times = part["repeat"]
    return bytes(text.encode(encoding) * times)
