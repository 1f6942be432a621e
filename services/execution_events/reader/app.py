"""The API of design section 5; `schemas/openapi.json` is its contract."""

import re
import time
import uuid
from http import HTTPStatus
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from execution_events.errors import BatchTooSlowError, RetryableError
from execution_events.management import ReaderMetrics
from execution_events.observability import Logger
from execution_events.reader.access import Access
from execution_events.reader.feeds import Feeds
from execution_events.reader.limits import Limits
from execution_events.reader.lists import EventsEndpoint
from execution_events.reader.streaming import StreamLimits
from execution_events.reader.watch import Lists, WatchLimits
from execution_events.serving import error_body

_log = Logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def create_app(
    lists: Lists,
    feeds: Feeds,
    metrics: ReaderMetrics,
    access: Access,
    limits: Limits,
    stream_limits: StreamLimits = StreamLimits(),  # noqa: B008 - a value
    watch_limits: WatchLimits = WatchLimits(),  # noqa: B008 - a value
) -> ASGIApp:
    """The API over `lists`; every answer, an error too, has a request id."""
    contract = files(__package__).joinpath("openapi.json").read_bytes()

    async def openapi(_: Request) -> Response:
        return Response(contract, media_type="application/json")

    app = Starlette(
        routes=[
            Route(
                "/v1/executions/{execution_id}/events",
                EventsEndpoint(lists, feeds, metrics, access, limits, stream_limits, watch_limits),
                methods=["GET"],
            ),
            Route("/openapi.json", openapi, methods=["GET"]),
        ],
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


_LATER = {"Retry-After": "1"}


async def _unavailable(_: Request, error: Exception) -> Response:
    if isinstance(error, BatchTooSlowError):
        _log.warning("a list took too long", error=str(error))
        return _error(503, "the database took too long; try again, or ask for less", _LATER)
    _log.warning("the database is away", error=str(error))
    return _error(503, "the database is away; try again", _LATER)


async def _internal_error(_: Request, __: Exception) -> Response:
    return _error(500, "internal error; the log has the request id")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(error_body(status, message), status, headers, media_type="application/json")


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
                # A stream, and a watch above all, may last as long as its client likes.
                self._metrics.request_seconds.observe(time.perf_counter() - started)
                # A new list: answers are given again.
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # Starlette has answered 500 and raised it again for us to log.
            _log.exception("request failed", request_id=request_id)
        finally:
            self._metrics.requests.labels(status).inc()


def _request_id(scope: Scope) -> str:
    """The caller's X-Request-Id where it has one that is safe to log, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(text := value.decode("latin-1")):
            return str(text)
    return uuid.uuid4().hex
