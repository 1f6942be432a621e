"""Serving an ASGI application inside a process that has its own signals and shutdown."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from execution_events.errors import SettingsError
from execution_events.web.connections import Bounds, Connection, Connections, Refused
from execution_events.web.errors import (
    HEAD_MAX_BYTES,
    HEADERS_MAX,
    PHRASES,
    REASONS,
    TARGET_MAX_BYTES,
    error_body,
    error_headers,
)

_GRACE = 5
"""Seconds that open requests may take when the server stops."""


@contextlib.asynccontextmanager
async def serve(
    app: ASGIApp,
    host: str,
    port: int,
    bounds: Bounds = Bounds(),  # noqa: B008 - a value
    refused: Refused = lambda _: None,
) -> AsyncIterator[str]:
    """Serve `app` and give its address, `http://host:port`; port 0 takes any free one.

    At the end no new connection is taken, and open requests have a few seconds to finish.
    Raises `SettingsError` when the address cannot be bound.
    """
    connections = Connections(bounds, refused)
    config = uvicorn.Config(
        _Acceptable(app, refused),
        http=cast(Any, partial(Connection, connections)),
        log_config=None,
        # Or each malformed request is a warning.
        log_level=logging.ERROR,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=bounds.idle,
        timeout_graceful_shutdown=_GRACE,
        h11_max_incomplete_event_size=HEAD_MAX_BYTES,
    )
    listener = _bind(host, port)
    server = _Server(config, connections)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        address, bound_port = listener.getsockname()[:2]
        yield (
            f"http://[{address}]:{bound_port}"
            if ":" in address
            else (f"http://{address}:{bound_port}")
        )
    finally:
        server.should_exit = True
        await serving
        listener.close()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address, family=family, backlog=2048)
        # What it accepts inherits this; asyncio itself sets it only where a socket names its
        # protocol. Without it a body waits 40 ms for the client to confirm the head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise SettingsError(f"cannot serve {host}:{port}: {error.strerror or error}") from error


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, connections: "Connections") -> None:
        super().__init__(config)
        self._connections = connections

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the command that runs the service."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second."""
        if counter % 5 == 0:
            self._connections.sweep()
        return await super().on_tick(counter)


class _Acceptable:
    """Refuses requests that are too long, have a body, or speak another version.

    Other methods than GET and HEAD go to the application, which refuses them all; their body is
    never read, so their connection ends with the answer.
    """

    def __init__(self, app: ASGIApp, refused: Refused) -> None:
        self._app = app
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        target = len(scope["raw_path"]) + len(scope["query_string"])
        if scope["http_version"] not in ("1.0", "1.1"):
            await self._refuse(505, send)
        elif target > TARGET_MAX_BYTES:
            await self._refuse(414, send)
        elif (
            len(headers) > HEADERS_MAX
            or target + sum(len(name) + len(value) + 4 for name, value in headers) > HEAD_MAX_BYTES
        ):
            await self._refuse(431, send)
        elif not any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
            for name, value in headers
        ):
            await self._app(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD"):
            await self._refuse(413, send)
        else:

            async def send_and_close(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
                await send(message)

            await self._app(scope, receive, send_and_close)

    async def _refuse(self, status: int, send: Send) -> None:
        self._refused(REASONS.get(status, "malformed"))
        body = error_body(status, PHRASES[status])
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": error_headers(status, body),
            }
        )
        await send({"type": "http.response.body", "body": body})
