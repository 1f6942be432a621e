"""An HTTP server for ASGI applications, in a process that keeps its own signal handlers."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import uvicorn
from starlette.types import ASGIApp

from execution_events.errors import ExecutionEventsError, SettingsError
from execution_events.logs import Logger
from execution_events.text import system_error
from execution_events.web.admission import Admission, admitting
from execution_events.web.connections import Connection, ConnectionLimits, Connections
from execution_events.web.errors import HEAD_MAX_BYTES

_log = Logger(__name__)

_CUT_TIMEOUT = 1
"""Seconds for the end of cut responses."""


class Address(NamedTuple):
    """An address to listen on, port 0 for a free one, and the names of its settings in errors."""

    host: str = "127.0.0.1"
    port: int = 0
    host_setting: str = "host"
    port_setting: str = "port"


class ServerOptions(NamedTuple):
    """The limits of a server, and the requests that it admits."""

    limits: ConnectionLimits = ConnectionLimits()
    admission: Admission = Admission()
    stop_timeout: float = 5
    """Seconds for requests in progress when the server stops; then their responses are cut."""


@contextlib.asynccontextmanager
async def serve(
    app: ASGIApp,
    address: Address = Address(),  # noqa: B008 - a value
    options: ServerOptions = ServerOptions(),  # noqa: B008 - a value
) -> AsyncIterator[str]:
    """Serve `app` at `address` and yield the URL.

    At exit the server stops listening, gives requests in progress the `stop_timeout` to finish,
    and cuts the rest. Raises `SettingsError` if the address cannot be bound, and another error if
    only its port is in use.
    """
    connections = Connections(options.limits, options.admission.on_refusal)
    config = uvicorn.Config(
        admitting(app, options.admission),
        http=cast(Any, partial(Connection, connections)),
        log_config=None,
        # uvicorn warns of every malformed request.
        log_level=logging.ERROR,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=options.limits.idle_timeout,
        h11_max_incomplete_event_size=HEAD_MAX_BYTES,
    )
    listener = _bind(address)
    server = _Server(config, connections, options.stop_timeout)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        host, port = listener.getsockname()[:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await serving
        listener.close()


def _bind(address: Address) -> socket.socket:
    host, port, host_setting, port_setting = address
    try:
        family, _, _, _, name = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(
            name,
            family=family,
            backlog=2048,
            # `::` is every address, of IPv4 too.
            dualstack_ipv6=name[0] == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        problem = f"cannot listen on {host}:{port}: {system_error(error)}"
        if error.errno == errno.EADDRINUSE:
            raise ExecutionEventsError(
                f"{problem}: stop the program that listens there, or set {port_setting} to another"
                " port; 0 picks a free one"
            ) from error
        raise SettingsError(f"{problem}: correct {host_setting} or {port_setting}") from error
    # Accepted sockets inherit the option; asyncio sets it only on sockets created with an explicit
    # protocol. Without it a body waits 40 ms for the client to acknowledge the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, connections: Connections, stop_timeout: float
    ) -> None:
        super().__init__(config)
        self._connections = connections
        self._stop_timeout = stop_timeout

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers; the command that runs the service has its own."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Enforce the timeouts twice a second; uvicorn calls this ten times a second."""
        if counter % 5 == 0:
            self._connections.enforce_timeouts()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, give requests in progress time to finish, and cut the rest."""
        cutting = asyncio.create_task(self._cut_late_responses())
        try:
            await super().shutdown(sockets)
        finally:
            cutting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await cutting

    async def _cut_late_responses(self) -> None:
        await asyncio.sleep(self._stop_timeout)
        tasks = set(self.server_state.tasks)
        if tasks:
            _log.warning("responses_cut", responses=len(tasks))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CUT_TIMEOUT)
        for connection in list(self._connections.open):
            connection.abort()
