"""The reader's routes; `schemas/openapi.json` is their contract."""

import re
from importlib.resources import files
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from execution_events.events import EXECUTION_ID
from execution_events.metrics import ReaderMetrics
from execution_events.reader.endpoint import EventsEndpoint
from execution_events.reader.execution_endpoint import ExecutionsEndpoint
from execution_events.reader.reference import reference_routes
from execution_events.web.application import application

_EXECUTIONS = "/v1/executions"
_EVENTS = f"{_EXECUTIONS}/{{execution_id}}/events"
_NEAR_EXECUTIONS = re.compile(r"/(?:v[0-9]+/)?executions?/*", re.IGNORECASE)
_NEAR_EVENTS = re.compile(r"/(?:v[0-9]+/)?executions?/([^/]+)(?:/[a-z]*)?/*", re.IGNORECASE)
_ROOT = {
    "executions": _EXECUTIONS,
    "events": _EVENTS,
    "contract": "/openapi.json",
    "reference": "/docs",
}


def create_app(
    executions: ExecutionsEndpoint, events: EventsEndpoint, metrics: ReaderMetrics
) -> ASGIApp:
    """Return the reader's application."""
    contract = read_contract()

    async def root(_: Request) -> Response:
        return JSONResponse(_ROOT)

    async def openapi(_: Request) -> Response:
        return Response(contract, media_type="application/json")

    return application(
        [
            # Routes are tried in this order: the one of most requests comes first.
            Route(_EVENTS, events, methods=["GET"]),
            Route(_EXECUTIONS, executions, methods=["GET"]),
            Route("/", root, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
            *reference_routes(),
        ],
        metrics,
        _error_text,
    )


def _error_text(status: int, path: str) -> str | None:
    if status == 405:
        return "method not allowed: expected GET or HEAD"
    if status != 404:
        return None
    if _NEAR_EXECUTIONS.fullmatch(path):
        return f"not found; did you mean {_EXECUTIONS}?"
    near = _NEAR_EVENTS.fullmatch(path)
    if near is not None and EXECUTION_ID.fullmatch(near[1]):
        return f"not found; did you mean {_EVENTS.format(execution_id=near[1])}?"
    return f"not found; executions are at GET {_EXECUTIONS}, events at GET {_EVENTS}"


def read_contract() -> bytes:
    """Return the OpenAPI document, packaged in a wheel and in `schemas/` of a checkout."""
    packaged = files(__package__) / "openapi.json"
    if packaged.is_file():
        return packaged.read_bytes()
    return (Path(__file__).parents[3] / "schemas" / "openapi.json").read_bytes()
