"""Responses of lists: conditional, compressed, with a link to the next page."""

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import Response

from execution_events.reader.rendering import ListFormat
from execution_events.reader.streaming import HEADERS
from execution_events.web.compression import COMPRESSION_MIN_BYTES, compressor
from execution_events.web.negotiation import choose_encoding, matches

MEDIA_TYPES: Mapping[ListFormat, str] = {
    "json": "application/json",
    "lines": "application/x-ndjson",
}


def joined(headers: Headers, name: str) -> str:
    """Return the values of a repeatable header as one list."""
    return ",".join(headers.getlist(name))


def not_modified(condition: str, tag: str) -> Response | None:
    """Return 304 if the client's If-None-Match lists `tag`."""
    if condition and matches(condition, tag):
        return Response(status_code=304, headers=HEADERS | {"ETag": tag})
    return None


def next_page(marker: str, link: str) -> dict[str, str]:
    """Return the headers that lead to the next page."""
    return {"X-Next-Marker": marker, "Link": f'<{link}>; rel="next"'}


def whole(body: bytes, headers: Mapping[str, str], accept_encoding: str) -> Response:
    """Return a complete body, compressed if the client accepts that and it is not short."""
    encoding = choose_encoding(accept_encoding)
    if encoding is None or len(body) < COMPRESSION_MIN_BYTES:
        return Response(body, headers=dict(headers))
    compressed = compressor(encoding)
    return Response(
        compressed.add(body) + compressed.end(), headers={**headers, "Content-Encoding": encoding}
    )
