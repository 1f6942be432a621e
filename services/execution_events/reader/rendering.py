"""Lists of events as the API writes them, from the bodies that are stored."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from execution_events.bilingual import Lang, half
from execution_events.projection.body import decode, encode

Format = Literal["json", "lines"]
"""One array, or one event a line."""


class Rendering:
    """A list piece by piece: what `add` and then `end` return, joined, is design section 5's body.

    It is no valid JSON before the end.
    """

    def __init__(self, format_: Format, lang: Lang) -> None:
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
    """`body` with that half of its reason and message."""
    event = decode(body)
    return encode(
        msgspec.structs.replace(
            event, reason=half(event.reason, lang), message=half(event.message, lang)
        )
    )
