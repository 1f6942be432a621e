"""Answers that are errors: their body, and the texts of what the server refuses by itself."""

import uuid
from typing import Final

import msgspec

HEAD_MAX_BYTES: Final = 16 * 1024
"""Of the request line and the headers."""
TARGET_MAX_BYTES: Final = 12 * 1024
HEADERS_MAX: Final = 100

PHRASES = {
    400: "malformed HTTP request",
    408: "the head of the request did not come in time",
    413: "a request has no body here",
    414: f"expected a target of at most {TARGET_MAX_BYTES} bytes",
    431: f"expected at most {HEAD_MAX_BYTES} bytes of headers, and {HEADERS_MAX} of them",
    501: "no such transfer coding",
    503: "too many connections; try again",
    505: "expected HTTP/1.1",
}
REASONS = {
    408: "head_time",
    413: "body",
    414: "head_size",
    431: "head_size",
    503: "connections",
}


def error_body(status: int, message: str) -> bytes:
    """The body of every answer that is an error."""
    return msgspec.json.encode({"error_code": f"EE.{status:04}", "error_msg": message})


def error_headers(status: int, body: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of an error after which the connection is closed."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        (b"x-request-id", uuid.uuid4().hex.encode()),
    ]
    return [*headers, (b"retry-after", b"1")] if status == 503 else headers
