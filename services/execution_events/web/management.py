"""The management port, separate from the API: `/livez`, `/readyz`, `/metrics`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from execution_events.settings import ManagementSettings, variable_of
from execution_events.web.server import Address, serve

Readiness = Callable[[], Awaitable[list[str]]]
"""Returns the reasons for which a service is not ready; an empty list when it is."""


@asynccontextmanager
async def serve_management(
    settings: ManagementSettings, registry: CollectorRegistry, readiness: Readiness
) -> AsyncIterator[str]:
    """Serve the management port and yield its URL.

    `/livez` answers 200 while the event loop runs. `/readyz` answers 200, or 503 with the reasons.
    `/metrics` is Prometheus's text format.
    """

    async def livez(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def readyz(_: Request) -> Response:
        reasons = await readiness()
        return JSONResponse(
            {"ready": not reasons, "reasons": reasons}, status_code=503 if reasons else 200
        )

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    routes = [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
    address = Address(
        settings.host,
        settings.port,
        variable_of("management_host"),
        variable_of("management_port"),
    )
    async with serve(Starlette(routes=routes), address) as url:
        yield url
