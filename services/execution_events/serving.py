"""Serving an ASGI application inside a process that has its own signals and shutdown."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.types import ASGIApp

from execution_events.errors import SettingsError

_GRACE = 5
"""Seconds that open requests may take when the server stops."""


@contextlib.asynccontextmanager
async def serve(app: ASGIApp, host: str, port: int) -> AsyncIterator[str]:
    """Serve `app` and give its address, `http://host:port`; port 0 takes any free one.

    At the end no new connection is taken, and open requests have a few seconds to finish.
    Raises `SettingsError` when the address cannot be bound.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
        h11_max_incomplete_event_size=16 * 1024,
    )
    listener = _bind(host, port)
    server = _Server(config)
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
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(f"cannot serve {host}:{port}: {error.strerror or error}") from error


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the command that runs the service."""
        yield
