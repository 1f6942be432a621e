"""The reader's routes; `schemas/openapi.json` is their contract."""

from importlib.resources import files
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from execution_events.metrics import ReaderMetrics
from execution_events.reader.endpoint import EventsEndpoint
from execution_events.web.application import application

_ERROR_TEXTS = {
    404: "not found; events are at GET /v1/executions/{execution_id}/events",
    405: "method not allowed: expected GET or HEAD",
}


def create_app(events: EventsEndpoint, metrics: ReaderMetrics) -> ASGIApp:
    """Return the reader's application."""
    contract = read_contract()

    async def openapi(_: Request) -> Response:
        return Response(contract, media_type="application/json")

    return application(
        [
            Route("/v1/executions/{execution_id}/events", events, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
        ],
        metrics,
        _ERROR_TEXTS,
    )


def read_contract() -> bytes:
    """Return the OpenAPI document, packaged in a wheel and in `schemas/` of a checkout."""
    packaged = files(__package__) / "openapi.json"
    if packaged.is_file():
        return packaged.read_bytes()
    return (Path(__file__).parents[3] / "schemas" / "openapi.json").read_bytes()
