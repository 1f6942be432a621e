"""The output of `dead-letters`, as text and as JSON."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from execution_events.store.write.dead_letters import Content, ListedDeadLetter

TRUNCATED = "only the start of the record was kept, so it cannot be retried"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS_MAX = 253_402_300_799_999


class _LetterJson(msgspec.Struct, rename="camel"):
    id: int
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: str | None
    value_bytes: int | None
    value_begin: str | None
    reason: str
    detail: str
    refused_at: datetime
    state: str
    attempts: int
    last_attempt_at: datetime | None
    last_reason: str | None
    last_detail: str | None
    retried_at: datetime | None
    discarded_at: datetime | None
    truncated: bool


class _Header(msgspec.Struct, rename="camel"):
    name: str
    value: str | None
    value_base64: bytes | None


class _RecordJson(_LetterJson, rename="camel"):
    key_bytes: int | None
    key_base64: bytes | None
    value: str | None
    value_base64: bytes | None
    value_sha256: str | None
    header_count: int
    headers: list[_Header]


def line(letter: ListedDeadLetter) -> str:
    """Return the line of `list`."""
    marks = [letter.state] if letter.state != "open" else []
    marks += [f"attempts: {letter.attempts}"] if letter.attempts else []
    marks += ["truncated"] if letter.truncated else []
    return (
        f"{letter.id:>6}  {letter.refused_at:%Y-%m-%d %H:%M:%S}  {_position(letter)}  "
        f"{letter.reason}: {letter.detail}" + (f"  [{', '.join(marks)}]" if marks else "")
    )


def json_line(letter: ListedDeadLetter) -> str:
    """Return the JSON object of `list`."""
    return msgspec.json.encode(_LetterJson(**_fields(letter))).decode()


def json_record(letter: ListedDeadLetter, content: Content) -> str:
    """Return the JSON object of `show`."""
    digest = content.value_sha256
    whole = _RecordJson(
        **_fields(letter) | {"key": _text(content.key)},
        key_bytes=content.key_bytes,
        key_base64=content.key,
        value=_text(content.value),
        value_base64=content.value,
        value_sha256=None if digest is None else digest.hex(),
        header_count=content.header_count,
        headers=[_Header(name, _text(value), value) for name, value in content.headers],
    )
    return msgspec.json.encode(whole).decode()


def paragraphs(letter: ListedDeadLetter, content: Content) -> Iterator[str]:
    """Yield the lines of `show`."""
    yield f"dead letter {letter.id}: {letter.state}"
    if letter.truncated:
        yield f"truncated  {TRUNCATED}"
    yield f"record     {_position(letter)}, timestamp {_milliseconds(letter.timestamp)}"
    yield f"refused    {_second(letter.refused_at)}, {letter.reason}: {letter.detail}"
    if letter.last_attempt_at is not None:
        yield f"attempts   {letter.attempts}, last {_second(letter.last_attempt_at)}"
    if letter.last_reason is not None:
        yield f"           refused again, {letter.last_reason}: {letter.last_detail}"
    if letter.retried_at is not None:
        yield f"retried    {_second(letter.retried_at)}"
    if letter.discarded_at is not None:
        yield f"discarded  {_second(letter.discarded_at)}"
    yield f"key        {_size(content.key, content.key_bytes)}"
    if content.key is not None:
        yield f"           {_visible(content.key)}"
    yield f"headers    {content.header_count}"
    for name, value in content.headers:
        shown = "none" if value is None else _visible(value)
        yield f"           {_visible(name.encode())}: {shown}"
    yield f"value      {_size(content.value, letter.value_bytes)}"
    if content.value_sha256 is not None:
        yield f"SHA-256    {content.value_sha256.hex()}"
    if content.value is not None:
        yield _visible(content.value)


def _fields(letter: ListedDeadLetter) -> dict[str, Any]:
    texts = {"key": _text(letter.key), "value_begin": _text(letter.value_begin)}
    return letter._asdict() | texts


def _position(letter: ListedDeadLetter) -> str:
    return f"{letter.topic}/{letter.partition}@{letter.offset}"


def _size(kept: bytes | None, whole: int | None) -> str:
    if kept is None or whole is None:
        return "none"
    return f"{whole} bytes" + (f", the first {len(kept)} kept" if len(kept) < whole else "")


def _milliseconds(timestamp: int) -> str:
    if not 0 <= timestamp <= _MILLISECONDS_MAX:
        return str(timestamp)
    moment = _EPOCH + timedelta(milliseconds=timestamp)
    return f"{timestamp} ({moment.isoformat(timespec='milliseconds').replace('+00:00', 'Z')})"


def _second(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode(errors="backslashreplace")


def _visible(content: bytes) -> str:
    """Return the text for a terminal, with control and invisible characters escaped."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode()
        for character in content.decode(errors="backslashreplace")
    )
