"""HTTP as bytes: requests that no client library sends, and all responses to them."""

import asyncio
import json
from typing import NamedTuple

import httpx

from tests.support.consumers import DEADLINE


class RawResponse(NamedTuple):
    status: int
    fields: dict[str, str]
    """By lower-case name; repeated values are joined by a comma."""
    body: bytes

    @property
    def unvarying(self) -> "RawResponse":
        """The response without the headers that vary."""
        varying = {"x-request-id", "date"}
        return self._replace(fields={k: v for k, v in self.fields.items() if k not in varying})


def request(
    target: str,
    *lines: str,
    method: str = "GET",
    version: str = "HTTP/1.1",
    close: bool = True,
) -> bytes:
    """Return a request; the server closes the connection after it unless `close` is false.

    Every character is sent as one byte.
    """
    closing = ["Connection: close"] * close
    head = [f"{method} {target} {version}", "Host: h", *closing, *lines, "", ""]
    return "\r\n".join(head).encode("latin-1")


async def exchange(address: httpx.URL | str, *parts: bytes) -> bytes:
    """Send bytes and return everything up to the end of the connection."""
    url = httpx.URL(address)
    source, sink = await asyncio.open_connection(url.host, url.port, limit=2**24)
    content = b""
    try:
        async with asyncio.timeout(DEADLINE):
            for part in parts:
                sink.write(part)
            while received := await source.read(65536):
                content += received
    except ConnectionError:
        # The rest of a refused request may still be in flight when the server closes.
        pass
    finally:
        sink.transport.abort()
    return content


def parse_responses(content: bytes, *, to_head: bool = False) -> list[RawResponse]:
    """Parse responses; nothing may be left over."""
    found = []
    while content:
        head, _, content = content.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields: dict[str, str] = {}
        for name, value in (line.split(": ", 1) for line in lines):
            key = name.lower()
            fields[key] = f"{fields[key]}, {value}" if key in fields else value
        size = 0 if to_head else int(fields.get("content-length", 0))
        version, status, *_ = first.split(" ")
        assert version == "HTTP/1.1"
        assert len(content) >= size
        found.append(RawResponse(int(status), fields, content[:size]))
        content = content[size:]
    return found


def check_error(answer: RawResponse, holds: str = "") -> None:
    """Check that an error has a request id and the common body."""
    assert 0 < len(answer.fields["x-request-id"]) <= 128
    assert answer.fields["content-type"] == "application/json"
    error = json.loads(answer.body)
    assert list(error) == ["error_code", "error_msg"]
    assert error["error_code"] == f"EE.{answer.status:04}"
    assert error["error_msg"].isprintable()
    assert len(error["error_msg"]) < 300
    assert holds in error["error_msg"]
