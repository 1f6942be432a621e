"""The messages of workers, a pure function of a seed."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.faults.record import Headers

COUNT_MAX = 2**31 - 1
"""Maximum of one record. Counts are random so that a loss cannot cancel a duplicate."""
_EXECUTIONS = 24
_NAMES = 5
_WITH_SOURCE = 0.2
"""Fraction of the records with a source."""
_SENT_TWICE = 0.3
"""Fraction of the records with a source that are sent again later."""
_BEGIN = 1_767_225_600  # 2026-01-01T00:00:00Z
_SPAN = 600
"""Range of timestamps in seconds, short enough for ties."""
_REASONS = ("启动##ActionStart", "执行成功##SuccessfulFinish", "执行失败##ActionFailed", "plain")


@dataclass
class Message:
    """A record to send. `partition` is that of the first attempt, None before it."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    source: str | None = None
    sequence: int | None = None
    partition: int | None = None


class Author:
    """A generator of one worker's messages, in order, with copies of earlier ones."""

    def __init__(self, seed: int, worker: int, poison: float = 0.0) -> None:
        self._random = random.Random(f"{seed}/{worker}")
        self._source = f"worker-{seed}-{worker}"
        self._poison = poison
        self._sequence = 0
        self._to_repeat: list[Message] = []

    def next(self, *, with_source: float = _WITH_SOURCE) -> Message:
        """Return the next message: a new one, or a copy of an earlier one."""
        rng = self._random
        if self._to_repeat and rng.random() < 0.1:
            return self._to_repeat.pop(rng.randrange(len(self._to_repeat)))
        body = self._body()
        key: bytes | None = str(body["executionId"]).encode()
        value: bytes | None = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode()
        headers: Headers = ()
        source = sequence = None
        if rng.random() < with_source:
            self._sequence += rng.choice((1, 1, 1, 7))
            source, sequence = self._source, self._sequence
            headers = (("ce_source", source.encode()), ("ce_sequence", b"%d" % sequence))
        if rng.random() < self._poison:
            if source is None and rng.random() < 0.3:
                headers = rng.choice(_BAD_HEADERS)
            else:
                key, value = rng.choice(_POISONS)(body, rng)
        message = Message(key, value, headers, source, sequence)
        if source is not None and rng.random() < _SENT_TWICE:
            self._to_repeat.append(message)
        return message

    def _body(self) -> dict[str, Any]:
        rng = self._random
        execution = rng.randrange(_EXECUTIONS)
        name = f"object-{rng.randrange(_NAMES)}.{execution:x}{rng.randrange(_NAMES):x}"
        namespace = f"tenant-{execution % 3}"
        last = _BEGIN + rng.randrange(_SPAN)
        first = last - rng.choice((0, 0, rng.randrange(_SPAN)))
        body: dict[str, Any] = {
            "executionId": f"execution-{execution}",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {"name": f"pod-{rng.randrange(9)}", "namespace": namespace},
            "reason": rng.choice(_REASONS),
            "message": f"第 {rng.randrange(10**6)} 次 ## attempt 😀",
            "firstTimestamp": _time(first, rng),
            "lastTimestamp": _time(last, rng, at_least=True),
            "count": rng.randint(1, COUNT_MAX),
            "type": rng.choice(("Normal", "Warning")),
            "elemType": "KubeDAG.init",
            "elemId": f"job-{rng.randrange(4)}",
            "actionName": rng.choice(("create", "delete")),
            "unknown": {"ignored": [1, None, "x"]},
        }
        for optional in ("involvedObject", "message", "firstTimestamp", "count"):
            if rng.random() < 0.05:
                del body[optional]
        if rng.random() < 0.05:
            # Both then default to the record's own timestamp.
            body.pop("firstTimestamp", None)
            del body["lastTimestamp"]
        return body


def _time(second: int, rng: random.Random, *, at_least: bool = False) -> str:
    """Return `second` in one of the contract's formats.

    Only with `at_least` may it have a fraction, so that first never exceeds last.
    """
    day, of_day = divmod(second - _BEGIN, 86_400)
    hour, rest = divmod(of_day, 3600)
    minute, of_minute = divmod(rest, 60)
    # A time before the range is on the evening before.
    text = f"2025-12-{32 + day:02}" if day < 0 else f"2026-01-{1 + day:02}"
    text += f"T{hour:02}:{minute:02}:{of_minute:02}"
    if at_least and rng.random() < 0.3:
        text += f".{rng.randrange(10**9):09}"
    if hour < 12 and rng.random() < 0.2:
        # The same instant in another time zone.
        return text.replace(f"T{hour:02}", f"T{hour + 8:02}") + "+08:00"
    return text + "Z"


Poison = Callable[[dict[str, Any], random.Random], tuple[bytes | None, bytes | None]]


def _changed(**fields: Any) -> Poison:
    def poison(body: dict[str, Any], rng: random.Random) -> tuple[bytes | None, bytes | None]:
        return str(body["executionId"]).encode(), json.dumps(body | fields).encode()

    return poison


def _replaced(make: Callable[[bytes], bytes | None]) -> Poison:
    def poison(body: dict[str, Any], rng: random.Random) -> tuple[bytes | None, bytes | None]:
        return str(body["executionId"]).encode(), make(json.dumps(body).encode())

    return poison


def _wrong_key(body: dict[str, Any], rng: random.Random) -> tuple[bytes | None, bytes | None]:
    return b"execution-of-another", json.dumps(body).encode()


_POISONS: tuple[Poison, ...] = (
    _replaced(lambda value: None),
    _replaced(lambda value: b""),
    _replaced(lambda value: value[:-9]),
    _replaced(lambda value: value[:-2] + b"\xff" + value[-2:]),
    _replaced(lambda value: b"\xef\xbb\xbf" + value),
    _replaced(lambda value: b"[1, 2]"),
    _changed(count=0),
    _changed(count=True),
    _changed(count=2**31),
    _changed(metadata=None),
    _changed(message="a\0b"),
    _changed(lastTimestamp="2026-01-01T00:00:00"),
    _changed(lastTimestamp="2026-01-01T00:00:60Z"),
    _changed(firstTimestamp="2026-06-02T00:00:00Z", lastTimestamp="2026-06-01T00:00:00Z"),
    _wrong_key,
)
_BAD_HEADERS: tuple[Headers, ...] = (
    (("ce_source", b"alone"),),
    (("ce_sequence", b"1"),),
    (("ce_source", b"s"), ("ce_sequence", b"-1")),
    (("ce_source", b"s"), ("ce_sequence", None)),
    (("ce_source", b"\xff"), ("ce_sequence", b"1")),
)
