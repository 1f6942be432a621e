"""An HTTP server for ASGI applications, in a process that keeps its own signal handlers."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from execution_events.errors import ExecutionEventsError, SettingsError
from execution_events.settings import variable_of
from execution_events.text import system_error
from execution_events.web.connections import (
    Connection,
    ConnectionLimits,
    Connections,
    RefusalHook,
)
from execution_events.web.errors import (
    ERROR_TEXTS,
    HEAD_MAX_BYTES,
    HEADERS_MAX,
    REFUSAL_REASONS,
    TARGET_MAX_BYTES,
    error_body,
    error_headers,
)

_SHUTDOWN_TIMEOUT = 5
"""Seconds for requests in progress when the server stops."""


@contextlib.asynccontextmanager
async def serve(
    app: ASGIApp,
    host: str,
    port: int,
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - a value
    on_refusal: RefusalHook = lambda _: None,
    setting: str = "reader",
) -> AsyncIterator[str]:
    """Serve `app` and yield its address, `http://host:port`; port 0 picks a free one.

    At exit the server stops listening and gives requests in progress a few seconds to finish.
    `setting` begins the names of the settings of host and port. Raises `SettingsError` if the
    address cannot be bound, and another error if only its port is in use.
    """
    connections = Connections(limits, on_refusal)
    config = uvicorn.Config(
        _RequestFilter(app, on_refusal),
        http=cast(Any, partial(Connection, connections)),
        log_config=None,
        # uvicorn warns of every malformed request.
        log_level=logging.ERROR,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.idle_timeout,
        timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT,
        h11_max_incomplete_event_size=HEAD_MAX_BYTES,
    )
    listener = _bind(host, port, setting)
    server = _Server(config, connections)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        address, bound_port = listener.getsockname()[:2]
        yield (
            f"http://[{address}]:{bound_port}"
            if ":" in address
            else f"http://{address}:{bound_port}"
        )
    finally:
        server.should_exit = True
        await serving
        listener.close()


def _bind(host: str, port: int, setting: str) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address, family=family, backlog=2048)
        # Accepted sockets inherit the option; asyncio sets it only on sockets created with an
        # explicit protocol. Without it a body waits 40 ms for the client to acknowledge the head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        problem = f"cannot listen on {host}:{port}: {system_error(error)}"
        if error.errno == errno.EADDRINUSE:
            raise ExecutionEventsError(
                f"{problem}: stop the program that listens there, or set"
                f" {variable_of(f'{setting}_port')} to another port; 0 picks a free one"
            ) from error
        raise SettingsError(
            f"{problem}: correct {variable_of(f'{setting}_host')} or"
            f" {variable_of(f'{setting}_port')}"
        ) from error


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers; the command that runs the service has its own."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Enforce the timeouts twice a second; uvicorn calls this ten times a second."""
        if counter % 5 == 0:
            self._connections.enforce_timeouts()
        return await super().on_tick(counter)


class _RequestFilter:
    """Refuses requests that are too large, have a body, or use another HTTP version.

    Methods other than GET and HEAD are passed to the application, which refuses them. Their body
    is never read, so the connection is closed after the response.
    """

    def __init__(self, app: ASGIApp, on_refusal: RefusalHook) -> None:
        self._app = app
        self._on_refusal = on_refusal

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
        self._on_refusal(REFUSAL_REASONS.get(status, "malformed"))
        body = error_body(status, ERROR_TEXTS[status])
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": error_headers(status, body),
            }
        )
        await send({"type": "http.response.body", "body": body})
