"""`GET /v1/executions/{execution_id}/events`: from the headers of a request to its response."""

from functools import partial

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from execution_events.events import EXECUTION_ID, EXECUTION_ID_FORMAT
from execution_events.metrics import ReaderMetrics
from execution_events.reader.cache import CachedResponse, QueryKey, ResponseCache
from execution_events.reader.parameters import QueryError
from execution_events.reader.query import Query, parse_query
from execution_events.reader.rendering import ListFormat, Rendering, entity_tag
from execution_events.reader.responses import MEDIA_TYPES, joined, next_page, not_modified, whole
from execution_events.reader.streaming import (
    HEADERS,
    PAGE_MAX_EVENTS,
    StreamedList,
    StreamTimeouts,
)
from execution_events.reader.watch import EventSource, Watch, Watches
from execution_events.web.auth.access import Access
from execution_events.web.limits import ConcurrencyLimits
from execution_events.web.negotiation import choose_encoding, choose_format

_NOT_ACCEPTABLE = (
    "Accept: expected application/json, application/x-ndjson, text/event-stream or */*"
)


class EventsEndpoint:
    """The events of an execution, as a list from one snapshot or as a watch."""

    def __init__(
        self,
        events: EventSource,
        watches: Watches,
        access: Access,
        limits: ConcurrencyLimits,
        metrics: ReaderMetrics,
        timeouts: StreamTimeouts = StreamTimeouts(),  # noqa: B008 - a value
    ) -> None:
        self._events = events
        self._watches = watches
        self._access = access
        self._limits = limits
        self._timeouts = timeouts
        self._cache = ResponseCache()
        self._answers = {way: metrics.answers.labels(way) for way in ("cache", "page", "stream")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        execution_id = _execution_id(scope)
        headers = Headers(scope=scope)
        caller = await self._access.caller(headers)
        with self._limits.slot(caller.limit_key) as slot:
            key = QueryKey(
                execution_id,
                caller.namespaces,
                scope["query_string"],
                joined(headers, "accept"),
                joined(headers, "accept-encoding"),
            )
            response: Response
            match choose_format(key.accept):
                case None:
                    raise HTTPException(406, _NOT_ACCEPTABLE)
                case "watch":
                    response = self._watches.open(_query(key, is_watch=True), caller, headers)
                case format_:
                    condition = joined(headers, "if-none-match")
                    response = await self._list(key, format_, condition, caller.share)
            if isinstance(response, StreamedList | Watch):
                slot.become_stream()
            await response(scope, receive, send)

    async def _list(
        self, key: QueryKey, format_: ListFormat, condition: str, share: str | None
    ) -> Response:
        """Return the list from the cache if its revisions are current, else from the database."""
        cached = self._cache.get(key)
        query = None if cached else _query(key)
        revisions = None
        if cached is not None or condition:
            revisions = await self._events.revisions(key.execution_id, key.namespaces)
            if cached is not None and cached.revisions == revisions:
                self._answers["cache"].inc()
                return not_modified(condition, cached.tag) or cached.response
        query = query or _query(key)
        tag = partial(entity_tag, query.digest, format_)
        if revisions is not None and (unchanged := not_modified(condition, tag(revisions))):
            self._answers["cache"].inc()
            return unchanged
        limit = query.limit or PAGE_MAX_EVENTS
        page = await self._events.page(
            key.execution_id, query.selection, key.namespaces, limit, query.times, share
        )
        headers = HEADERS | {"ETag": tag(page.revisions), "Content-Type": MEDIA_TYPES[format_]}
        rendering = Rendering(format_, query.lang)
        if page.last is not None and query.limit is None:
            self._answers["stream"].inc()
            stream = partial(
                self._events.stream,
                key.execution_id,
                query.selection,
                key.namespaces,
                page,
                query.times,
                share,
            )
            encoding = choose_encoding(key.accept_encoding)
            return StreamedList(stream, tag, headers, rendering, encoding, self._timeouts)
        if page.last is not None:
            marker = query.marker_after(page.last)
            headers |= next_page(marker, query.link(marker))
        body = rendering.add(page.bodies) + rendering.end()
        response = whole(body, headers, key.accept_encoding)
        self._answers["page"].inc()
        self._cache.put(key, CachedResponse(page.revisions, headers["ETag"], response))
        return response


def _query(key: QueryKey, *, is_watch: bool = False) -> Query:
    try:
        return parse_query(key.execution_id, key.query_string, is_watch=is_watch)
    except QueryError as error:
        raise HTTPException(400, str(error)) from error


def _execution_id(scope: Scope) -> str:
    execution_id: str = scope["path_params"]["execution_id"]
    if scope["path"].endswith("\n"):
        raise HTTPException(404)  # Starlette's pattern also matches before a final line break.
    if not EXECUTION_ID.fullmatch(execution_id):
        raise HTTPException(400, f"execution_id: expected {EXECUTION_ID_FORMAT}")
    return execution_id
