"""The API of design section 5; `schemas/openapi.json` is its contract."""

import re
import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from execution_events.errors import BatchTooSlowError, RetryableError
from execution_events.events import EXECUTION_ID
from execution_events.management import ReaderMetrics
from execution_events.observability import Logger
from execution_events.reader.access import Access
from execution_events.reader.compression import WORTH_BYTES, compressor
from execution_events.reader.limits import Limits
from execution_events.reader.negotiation import (
    choose_encoding,
    choose_format,
    entity_tag,
    matches,
)
from execution_events.reader.query import Query, QueryError, parse_query
from execution_events.reader.rendering import Format, Rendering
from execution_events.reader.streaming import StreamedList, StreamLimits
from execution_events.serving import error_body
from execution_events.store.listing import Page, Selection, Stream
from execution_events.store.revisions import Namespaces

_log = Logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_FETCHED_WHOLE = 256
"""Events up to which a whole list is fetched at once; longer ones are streamed."""
_MEDIA_TYPES: Mapping[Format, str] = {"json": "application/json", "lines": "application/x-ndjson"}
_HEADERS = {
    "Cache-Control": "private, no-cache",
    "Vary": "Accept, Accept-Encoding, Authorization, X-Auth-Token",
}


class Lists(Protocol):
    """What the API asks of the store."""

    async def page(
        self, execution_id: str, selection: Selection, namespaces: Namespaces, limit: int
    ) -> Page: ...

    def stream(
        self, execution_id: str, selection: Selection, namespaces: Namespaces
    ) -> AbstractAsyncContextManager[Stream]: ...

    async def revisions(self, execution_id: str, namespaces: Namespaces) -> str: ...


def create_app(
    lists: Lists,
    metrics: ReaderMetrics,
    access: Access,
    limits: Limits,
    stream_limits: StreamLimits = StreamLimits(),  # noqa: B008 - a value
) -> ASGIApp:
    """The API over `lists`; every answer, an error too, has a request id."""
    contract = files(__package__).joinpath("openapi.json").read_bytes()

    async def openapi(_: Request) -> Response:
        return Response(contract, media_type="application/json")

    app = Starlette(
        routes=[
            Route(
                "/v1/executions/{execution_id}/events",
                _Events(lists, access, limits, stream_limits),
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


class _Events:
    """`GET /v1/executions/{execution_id}/events`."""

    def __init__(
        self, lists: Lists, access: Access, limits: Limits, stream_limits: StreamLimits
    ) -> None:
        self._lists = lists
        self._access = access
        self._limits = limits
        self._stream_limits = stream_limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        execution_id = _execution_id(request)
        caller = await self._access.caller(request.headers)
        with self._limits.place(caller.key) as place:
            try:
                query = parse_query(execution_id, scope["query_string"])
            except QueryError as error:
                raise HTTPException(400, str(error)) from error
            response = await self._answer(request, query, caller.namespaces)
            if isinstance(response, StreamedList):
                place.become_stream()
            await response(scope, receive, send)

    async def _answer(self, request: Request, query: Query, namespaces: Namespaces) -> Response:
        format_ = choose_format(_header(request, "accept"))
        tag = partial(entity_tag, query.digest, format_)
        if condition := _header(request, "if-none-match"):
            now = tag(await self._lists.revisions(query.execution_id, namespaces))
            if matches(condition, now):
                return Response(status_code=304, headers=_HEADERS | {"ETag": now})
        limit = query.limit or _FETCHED_WHOLE
        page = await self._lists.page(query.execution_id, query.selection, namespaces, limit)
        headers = _HEADERS | {"ETag": tag(page.revisions), "Content-Type": _MEDIA_TYPES[format_]}
        encoding = choose_encoding(_header(request, "accept-encoding"))
        rendering = Rendering(format_, query.lang)
        if page.last is not None and query.limit is None:
            stream = partial(self._lists.stream, query.execution_id, query.selection, namespaces)
            return StreamedList(stream, tag, headers, rendering, encoding, self._stream_limits)
        body = rendering.add(page.bodies) + rendering.end()
        if encoding and len(body) >= WORTH_BYTES:
            compressed = compressor(encoding)
            body = compressed.add(body) + compressed.end()
            headers["Content-Encoding"] = encoding
        return Response(body, headers=headers | _next(query, page))


def _execution_id(request: Request) -> str:
    execution_id: str = request.path_params["execution_id"]
    if request.scope["path"].endswith("\n"):
        raise HTTPException(404)  # Starlette's pattern ends before a last line break, too.
    if not EXECUTION_ID.fullmatch(execution_id):
        raise HTTPException(
            400, "execution_id: expected 1 to 128 characters of A-Z a-z 0-9 . _ : -"
        )
    return execution_id


def _header(request: Request, name: str) -> str:
    """A header that may be given several times, as if it were given once."""
    return ",".join(request.headers.getlist(name))


def _next(query: Query, page: Page) -> dict[str, str]:
    if page.last is None:
        return {}
    marker = query.marker_after(page.last)
    return {"X-Next-Marker": marker, "Link": f'<{query.link(marker)}>; rel="next"'}


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
