"""Content negotiation and conditional requests (RFC 9110, 12.5 and 13.1).

Malformed members of a header are ignored; without any other, the response is JSON, uncompressed and
complete.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Literal

Format = Literal["json", "lines", "watch"]
"""`application/json`, `application/x-ndjson`, `text/event-stream`."""
Encoding = Literal["zstd", "gzip"]

_LINES = "application/x-ndjson"
_ENCODINGS: tuple[Encoding, ...] = ("zstd", "gzip")
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_MEDIA_RANGE = re.compile(r"[\w!#$%&'*+.^`|~-]+/[\w!#$%&'*+.^`|~-]+", re.ASCII)
_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


# Clients repeat their few Accept headers; one header has at most 16 KiB.
@lru_cache(maxsize=64)
def choose_format(accept: str, *, can_watch: bool = True) -> Format | None:
    """Return JSON unless another format has a higher quality; None if none is acceptable.

    A format that is named also wins a tie with JSON under `*/*` or `application/*`. A resource that
    cannot be watched has no `text/event-stream`.
    """
    ranges = {name: q for name, q in _preferences(accept) if _MEDIA_RANGE.fullmatch(name)}
    if not ranges:
        return "json"
    lines = ranges.get(_LINES, 0.0)
    watch = ranges.get("text/event-stream", 0.0) if can_watch else 0.0
    other = max(lines, watch)
    json = _quality(ranges, "application/json")
    if other == json == 0:
        # `application/json;q=0, */*` for example.
        return "lines" if _quality(ranges, _LINES) else None
    if other < json or (other == json and "application/json" in ranges):
        return "json"
    return "lines" if lines > watch else "watch"


def _quality(ranges: Mapping[str, float], name: str) -> float:
    """Return the quality of the most specific range of an `application` type (RFC 9110, 12.5.1)."""
    return next((ranges[n] for n in (name, "application/*", "*/*") if n in ranges), 0.0)


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
