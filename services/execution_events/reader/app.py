"""The API of design section 5; `schemas/openapi.json` is its contract."""

import re
import time
import uuid
from http import HTTPStatus
from typing import Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from execution_events.errors import RetryableError
from execution_events.events import EXECUTION_ID
from execution_events.management import ReaderMetrics
from execution_events.observability import Logger
from execution_events.reader.rendering import render_events
from execution_events.store.listing import ListedEvent

_log = Logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Lists(Protocol):
    """What the API asks of the store."""

    async def of_execution(self, execution_id: str) -> list[ListedEvent]: ...


def create_app(lists: Lists, metrics: ReaderMetrics) -> ASGIApp:
    """The API over `lists`; every answer, an error too, has a request id."""

    async def list_events(request: Request) -> Response:
        execution_id = request.path_params["execution_id"]
        if request.scope["path"].endswith("\n"):
            raise HTTPException(404)  # Starlette's pattern ends before a last line break, too.
        if not EXECUTION_ID.fullmatch(execution_id):
            raise HTTPException(
                400, "execution_id: expected 1 to 128 characters of A-Z a-z 0-9 . _ : -"
            )
        for parameter in request.query_params:
            raise HTTPException(400, f"{_quoted(parameter)}: there is no such parameter")
        events = await lists.of_execution(execution_id)
        return Response(
            render_events(events),
            media_type="application/json",
            headers={"Cache-Control": "private, no-cache"},
        )

    app = Starlette(
        routes=[Route("/v1/executions/{execution_id}/events", list_events, methods=["GET"])],
        exception_handlers={
            HTTPException: _http_error,
            RetryableError: _unavailable,
            Exception: _internal_error,
        },
    )
    app.router.redirect_slashes = False
    return _Observed(app, metrics)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:
        detail = _EXPLANATIONS.get(error.status_code, detail)
    return _error(error.status_code, detail, dict(error.headers or {}))


_EXPLANATIONS = {
    404: "there is nothing here; try GET /v1/executions/{execution_id}/events",
    405: "only GET and HEAD are answered here",
}


async def _unavailable(_: Request, error: Exception) -> Response:
    _log.warning("the database is away", error=str(error))
    return _error(503, "the database is away; try again", {"Retry-After": "1"})


async def _internal_error(_: Request, __: Exception) -> Response:
    return _error(500, "internal error; the log has the request id")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body = msgspec.json.encode({"error_code": f"EE.{status:04}", "error_msg": message})
    return Response(body, status, headers, media_type="application/json")


class _Observed:
    """Gives each answer its request id; logs failures; counts and times requests."""

    def __init__(self, app: ASGIApp, metrics: ReaderMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # Starlette has answered 500 and raised it again for us to log.
            _log.exception("request failed", request_id=request_id)
        finally:
            self._metrics.requests.labels(status).inc()
            self._metrics.request_seconds.observe(time.perf_counter() - started)


def _request_id(scope: Scope) -> str:
    """The caller's X-Request-Id where it has one that is safe to log, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(text := value.decode("latin-1")):
            return str(text)
    return uuid.uuid4().hex


def _quoted(parameter: str) -> str:
    """`parameter` as it may stand in a message: bounded, and without control characters."""
    return ascii(parameter[:64])
