"""Lists of events as the API writes them, from stored bodies."""

import base64
import hashlib
from collections.abc import Sequence
from typing import Literal

import msgspec

from execution_events.bilingual import Lang, half
from execution_events.projection.body import decode, encode

ListFormat = Literal["json", "lines"]
"""A JSON array, or one event a line."""

_VERSION = "1"
"""Increase it when the same events render to another body."""


class Rendering:
    """The incremental body of a list: the joined results of every `add` and one final `end`.

    A JSON body is invalid until its end.
    """

    def __init__(self, format_: ListFormat, lang: Lang) -> None:
        self._format = format_
        self._lang = lang
        self._separator = b"["

    def add(self, bodies: Sequence[bytes]) -> bytes:
        if not bodies:
            return b""
        if self._lang != "both":
            bodies = [in_language(body, self._lang) for body in bodies]
        if self._format == "lines":
            return b"\n".join((*bodies, b""))
        separator, self._separator = self._separator, b","
        return separator + b",".join(bodies)

    def end(self) -> bytes:
        if self._format == "lines":
            return b""
        return b"[]" if self._separator == b"[" else b"]"


def in_language(body: bytes, lang: Lang) -> bytes:
    """Return `body` with one language's half of its reason and message."""
    event = decode(body)
    return encode(
        msgspec.structs.replace(
            event, reason=half(event.reason, lang), message=half(event.message, lang)
        )
    )


def entity_tag(query_digest: bytes, format_: ListFormat, revisions: str) -> str:
    """Return a list's entity tag, which is weak because all encodings share it.

    An absent execution and one of another tenant have the same tag.
    """
    digest = hashlib.blake2b(query_digest, digest_size=16, person=f"{format_}-{_VERSION}".encode())
    digest.update(revisions.encode())
    return f'W/"{base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()}"'
