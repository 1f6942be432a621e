"""Admission of requests to an application: by size, host and origin."""

import asyncio
import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple
from urllib.parse import unquote

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from execution_events.web.connections import CONNECTION, Connection, RefusalHook
from execution_events.web.errors import (
    ERROR_TEXTS,
    HEAD_MAX_BYTES,
    HEADERS_MAX,
    REFUSAL_REASONS,
    TARGET_MAX_BYTES,
    error_body,
    error_headers,
)

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::[0-9]*)?")
_ABSOLUTE = re.compile(rb"https?://([^/]*)", re.IGNORECASE)


class Admission(NamedTuple):
    """The requests that a server admits."""

    on_refusal: RefusalHook = lambda _: None
    local_hosts_only: bool = False
    """Refuse other hosts than loopback names and addresses: the name of another site may have
    been made to resolve to this machine, and its pages would be allowed to read the responses."""
    cors_origins: Sequence[str] = ()
    """Origins whose pages may read the responses."""


def admitting(app: ASGIApp, admission: Admission) -> ASGIApp:
    """Return `app` behind the checks of `admission`."""
    checked = _RequestFilter(app, admission)
    return _Cors(checked, admission.cors_origins) if admission.cors_origins else checked


class _RequestFilter:
    """Refuses requests that are too large, have a body, use another HTTP version or host.

    Methods other than GET and HEAD are passed to the application, which refuses them. Their body
    is never read, so the connection is closed after the response. A response that the application
    leaves incomplete is cut.
    """

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = len(scope["raw_path"]) + len(scope["query_string"])
        # One loop for all checks: most responses take less time than a few searches of the headers.
        size, host, has_body = target, b"", False
        for name, value in scope["headers"]:
            size += len(name) + len(value) + 4
            if name == b"host":
                host = value
            elif name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
                has_body = True
        if scope["http_version"] not in ("1.0", "1.1"):
            await self._refuse(505, send)
        elif target > TARGET_MAX_BYTES:
            await self._refuse(414, send)
        elif len(scope["headers"]) > HEADERS_MAX or size > HEAD_MAX_BYTES:
            await self._refuse(431, send)
        else:
            if not scope["raw_path"].startswith(b"/"):
                host = _take_authority(scope) or host
            if self._admission.local_hosts_only and not is_local(host.decode("latin-1")):
                await self._refuse(421, send)
            elif not has_body:
                await self._respond(scope, receive, send)
            elif scope["method"] in ("GET", "HEAD"):
                await self._refuse(413, send)
            else:
                await self._respond(scope, receive, partial(_send_and_close, send))

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope["state"][CONNECTION]
        if scope["http_version"] == "1.0":
            send = partial(_send_unframed, connection, send)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            # The server stops.
            if not connection.has_responded:
                await _send_error(503, "service stopping; retry later", send)
        connection.cut_incomplete()

    async def _refuse(self, status: int, send: Send) -> None:
        self._admission.on_refusal(REFUSAL_REASONS.get(status, "malformed"))
        await _send_error(status, ERROR_TEXTS[status], send)


class _Cors:
    """Cross-origin access for pages of `origins`; other requests are passed on unchanged."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)
        self._cors = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD"),
            allow_headers=("*",),
            expose_headers=("ETag", "Link", "Retry-After", "X-Next-Marker", "X-Request-Id"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_allowed = any(
            name == b"origin" and value in self._origins for name, value in scope["headers"]
        )
        await (self._cors if is_allowed else self._app)(scope, receive, send)


@lru_cache(maxsize=64)
def is_local(host: str) -> bool:
    """Return whether a Host header is of `localhost`, 127.0.0.0/8 or [::1]."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1]
    if name.lower() in ("localhost", "[::1]"):
        return True
    try:
        return ipaddress.IPv4Address(name).is_loopback
    except ValueError:
        return False


def _take_authority(scope: Scope) -> bytes | None:
    """Make a target in absolute form relative, and return its authority (RFC 9112, 3.2.2)."""
    absolute = _ABSOLUTE.match(scope["raw_path"])
    if absolute is None:
        return None
    scope["raw_path"] = scope["raw_path"][absolute.end() :] or b"/"
    scope["path"] = unquote(scope["raw_path"].decode("ascii"))
    return absolute[1]


async def _send_error(status: int, text: str, send: Send) -> None:
    body = error_body(status, text)
    headers = error_headers(status, body)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_and_close(send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        message["headers"] = [*message["headers"], (b"connection", b"close")]
    await send(message)


async def _send_unframed(connection: Connection, send: Send, message: Message) -> None:
    """Send to a client of HTTP/1.0, to which the end of the connection ends a body."""
    if message["type"] == "http.response.start":
        if not any(name == b"content-length" for name, _ in message["headers"]):
            connection.reset_when_closed(True)
    elif not message.get("more_body", False):
        await connection.flow.drain()
        connection.reset_when_closed(False)
    await send(message)
