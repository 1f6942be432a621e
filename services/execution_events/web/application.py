"""Starlette applications whose every response has a request id, errors included."""

import re
import secrets
import time
from collections.abc import Callable, Sequence
from functools import cache
from http import HTTPStatus
from typing import Protocol

from prometheus_client import Counter, Histogram
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from execution_events.errors import BatchTooSlowError, RetryableError
from execution_events.logs import Logger
from execution_events.web.errors import error_body

_log = Logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_RETRY_AFTER = {"Retry-After": "1"}


class RequestMetrics(Protocol):
    """The metrics of an application's requests."""

    @property
    def requests(self) -> Counter: ...
    @property
    def request_seconds(self) -> Histogram: ...


def application(
    routes: Sequence[BaseRoute],
    metrics: RequestMetrics,
    error_text: Callable[[int, str], str | None],
) -> ASGIApp:
    """Return an application of `routes`; `error_text` returns the text for a status and a path.

    A `RetryableError` is answered with 503. Any other error is answered with 500 and logged.
    """

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        detail = error.detail
        if detail == HTTPStatus(error.status_code).phrase:
            detail = error_text(error.status_code, request.scope["path"]) or detail
        return _error(error.status_code, detail, dict(error.headers or {}))

    app = Starlette(
        routes=list(routes),
        exception_handlers={
            HTTPException: http_error,
            RetryableError: _unavailable,
            Exception: _internal_error,
        },
    )
    app.router.redirect_slashes = False
    return _Instrumentation(app, metrics)


async def _unavailable(_: Request, error: Exception) -> Response:
    if isinstance(error, BatchTooSlowError):
        _log.warning("query_timed_out", error=str(error))
        return _error(
            503, "database query timed out; retry later or narrow the request", _RETRY_AFTER
        )
    _log.warning("database_unavailable", error=str(error))
    return _error(503, "database unavailable; retry later", _RETRY_AFTER)


async def _internal_error(_: Request, __: Exception) -> Response:
    return _error(500, "internal error; search the service log for this request id")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(error_body(status, message), status, headers, media_type="application/json")


class _Instrumentation:
    """Adds the request id to each response; counts and times requests; logs failures."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._request_seconds = metrics.request_seconds
        # Of few statuses; finding the counter of one takes longer than to increase it.
        self._requests = cache(metrics.requests.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # Until the response starts: the client decides how long a stream or watch lasts.
                self._request_seconds.observe(time.perf_counter() - started)
                # A copy: cached responses share their list of headers.
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # Starlette raises the error again after answering 500, for the server to log.
            _log.exception("request_failed", request_id=request_id)
        finally:
            self._requests(status).inc()


def _request_id(scope: Scope) -> str:
    """Return the request's X-Request-Id if it is safe to log, else a new id."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(text := value.decode("latin-1")):
            return str(text)
    return secrets.token_hex(16)
