"""Content negotiation and conditional requests (RFC 9110, 12.5 and 13.1).

Malformed headers are ignored: the response is JSON, uncompressed and complete.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

Format = Literal["json", "lines", "watch"]
"""`application/json`, `application/x-ndjson`, `text/event-stream`."""
Encoding = Literal["zstd", "gzip"]

_ENCODINGS: tuple[Encoding, ...] = ("zstd", "gzip")
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


# Clients repeat their few Accept headers; one header has at most 16 KiB.
@lru_cache(maxsize=64)
def choose_format(accept: str) -> Format:
    """Return JSON unless another format has a higher quality.

    A format that is named also wins a tie with JSON under `*/*` or `application/*`.
    """
    ranges = dict(_preferences(accept))
    lines, watch = (ranges.get(n, 0.0) for n in ("application/x-ndjson", "text/event-stream"))
    other = max(lines, watch)
    # The most specific range decides the quality of a type (RFC 9110, 12.5.1).
    names = ("application/json", "application/*", "*/*")
    best = next((name for name in names if name in ranges), None)
    json = ranges[best] if best is not None else 0.0
    if other == 0 or other < json or (other == json and best == "application/json"):
        return "json"
    return "lines" if lines > watch else "watch"


def choose_encoding(accept_encoding: str) -> Encoding | None:
    """Return the preferred encoding, zstd on a tie; None is no encoding."""
    codings = dict(_preferences(accept_encoding))
    others = codings.get("*", 0.0)
    best = max(_ENCODINGS, key=lambda encoding: codings.get(encoding, others))
    quality = codings.get(best, others)
    return best if quality > 0 and quality >= codings.get("identity", 0.0) else None


def matches(if_none_match: str, tag: str) -> bool:
    """Return whether the header lists `tag`, by weak comparison (RFC 9110, 8.8.3.2)."""
    if if_none_match.strip() == "*":
        return True
    return tag.removeprefix("W/") in _ENTITY_TAG.findall(if_none_match)


def _preferences(header: str) -> Iterator[tuple[str, float]]:
    """Yield the well-formed members of an Accept header with their quality."""
    for member in header.split(","):
        name, *parameters = (part.strip().lower() for part in member.split(";"))
        quality = "1"
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                quality = value.strip()
        if name and _QUALITY.fullmatch(quality):
            yield name, float(quality)
