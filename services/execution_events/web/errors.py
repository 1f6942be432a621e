"""Error responses: their body, and the texts of the server's own refusals."""

import secrets
from typing import Final

import msgspec

HEAD_MAX_BYTES: Final = 16 * 1024
"""Request line and headers."""
TARGET_MAX_BYTES: Final = 12 * 1024
HEADERS_MAX: Final = 100

ERROR_TEXTS = {
    400: "malformed HTTP request",
    408: "request head not received in time",
    413: "request body not allowed",
    414: f"request target too long: expected at most {TARGET_MAX_BYTES} bytes",
    421: "wrong host: without tokens the reader serves only localhost, 127.0.0.1 and [::1]",
    431: f"request head too large: expected at most {HEAD_MAX_BYTES} bytes"
    f" and {HEADERS_MAX} headers",
    501: "unsupported transfer coding",
    503: "too many connections; retry later",
    505: "unsupported HTTP version: expected HTTP/1.1",
}
REFUSAL_REASONS = {
    408: "head_time",
    413: "body",
    414: "head_size",
    421: "host",
    431: "head_size",
    503: "connections",
}
"""Labels of `ReaderMetrics.refused`; every other status is `malformed`."""


def error_body(status: int, message: str) -> bytes:
    """Return the body of an error response."""
    return msgspec.json.encode({"error_code": f"EE.{status:04}", "error_msg": message})


def error_headers(status: int, body: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of an error response that ends its connection."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        (b"x-request-id", secrets.token_hex(16).encode()),
    ]
    return [*headers, (b"retry-after", b"1")] if status == 503 else headers
