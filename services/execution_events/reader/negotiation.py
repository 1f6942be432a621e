"""What a request's headers ask for beyond its parameters: format, encoding, entity tags.

Headers that make no sense ask for nothing: the answer is JSON, plain and whole.
"""

import base64
import hashlib
import re
from typing import Literal

from execution_events.reader.rendering import Format
from execution_events.web.preferences import preferences

_BODIES = "1"
"""To be raised when bodies change for the same events."""
_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def choose_format(accept: str) -> Format | Literal["watch"]:
    """Another format than JSON where it is preferred, or named and as good as `*/*`.

    One event a line is `application/x-ndjson`, a watch `text/event-stream`.
    """
    ranges = dict(preferences(accept))
    lines, watch = (ranges.get(n, 0.0) for n in ("application/x-ndjson", "text/event-stream"))
    other = max(lines, watch)
    # The most specific range tells how good a type is (RFC 9110, 12.5.1).
    names = ("application/json", "application/*", "*/*")
    best = next((name for name in names if name in ranges), None)
    json = ranges[best] if best is not None else 0.0
    if other == 0 or other < json or (other == json and best == "application/json"):
        return "json"
    return "lines" if lines > watch else "watch"


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
