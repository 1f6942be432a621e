"""What a request's headers ask for beyond its parameters: format, encoding, entity tags.

Headers that make no sense ask for nothing: the answer is JSON, plain and whole.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Literal

from execution_events.reader.rendering import Format

Encoding = Literal["zstd", "gzip"]

_ENCODINGS: tuple[Encoding, ...] = ("zstd", "gzip")
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_BODIES = "1"
"""To be raised when bodies change for the same events."""
_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def choose_format(accept: str) -> Format | Literal["watch"]:
    """Another format than JSON where it is preferred, or named and as good as `*/*`.

    One event a line is `application/x-ndjson`, a watch `text/event-stream`.
    """
    ranges = dict(_preferences(accept))
    lines, watch = (ranges.get(n, 0.0) for n in ("application/x-ndjson", "text/event-stream"))
    other = max(lines, watch)
    # The most specific range tells how good a type is (RFC 9110, 12.5.1).
    names = ("application/json", "application/*", "*/*")
    best = next((name for name in names if name in ranges), None)
    json = ranges[best] if best is not None else 0.0
    if other == 0 or other < json or (other == json and best == "application/json"):
        return "json"
    return "lines" if lines > watch else "watch"


def choose_encoding(accept_encoding: str) -> Encoding | None:
    """The encoding that the caller prefers, zstd on a tie; None leaves the body as it is."""
    codings = dict(_preferences(accept_encoding))
    others = codings.get("*", 0.0)
    best = max(_ENCODINGS, key=lambda encoding: codings.get(encoding, others))
    quality = codings.get(best, others)
    return best if quality > 0 and quality >= codings.get("identity", 0.0) else None


def entity_tag(query: bytes, format_: Format, revisions: str) -> str:
    """Weak, as the body's encoding may differ; the same for executions that are not there."""
    digest = hashlib.blake2b(query, digest_size=16, person=f"{format_}-{_BODIES}".encode())
    digest.update(revisions.encode())
    return f'W/"{base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()}"'


def matches(if_none_match: str, tag: str) -> bool:
    """Whether the caller has what `tag` stands for, by weak comparison (RFC 9110, 8.8.3.2)."""
    if if_none_match.strip() == "*":
        return True
    return tag.removeprefix("W/") in _ENTITY_TAG.findall(if_none_match)


def _preferences(header: str) -> Iterator[tuple[str, float]]:
    """The members of an Accept header with their quality; malformed ones are left out."""
    for member in header.split(","):
        name, *parameters = (part.strip().lower() for part in member.split(";"))
        quality = "1"
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                quality = value.strip()
        if name and _QUALITY.fullmatch(quality):
            yield name, float(quality)
