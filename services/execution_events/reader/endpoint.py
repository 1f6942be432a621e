"""`GET /v1/executions/{execution_id}/events`: decode a request, ask the store, write bytes."""

from collections.abc import Mapping
from functools import partial

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from execution_events.events import EXECUTION_ID
from execution_events.metrics import ReaderMetrics
from execution_events.reader.cache import Answer, Asked, Cache
from execution_events.reader.negotiation import choose_format, entity_tag, matches
from execution_events.reader.query import Query, QueryError, parse_query
from execution_events.reader.rendering import Format, Rendering
from execution_events.reader.streaming import FETCHED_WHOLE, StreamedList, StreamLimits
from execution_events.reader.watch import Lists, Watch, WatchLimits
from execution_events.store.read.events import Page
from execution_events.store.read.feeds import Feeds
from execution_events.web.auth.access import Access, AccessError, Caller, IssuerAwayError
from execution_events.web.compression import WORTH_BYTES, choose_encoding, compressor
from execution_events.web.limits import Limits

_MEDIA_TYPES: Mapping[Format, str] = {"json": "application/json", "lines": "application/x-ndjson"}
_HEADERS = {
    "Cache-Control": "private, no-cache",
    "Vary": "Accept, Accept-Encoding, Authorization, X-Auth-Token",
}


class EventsEndpoint:
    """Answers each request from one snapshot, or with what was answered before of the same one.

    A watch goes on from there.
    """

    def __init__(
        self,
        lists: Lists,
        feeds: Feeds,
        metrics: ReaderMetrics,
        access: Access,
        limits: Limits,
        stream_limits: StreamLimits,
        watch_limits: WatchLimits,
    ) -> None:
        self._lists = lists
        self._feeds = feeds
        self._access = access
        self._limits = limits
        self._stream_limits = stream_limits
        self._watch_limits = watch_limits
        self._is_slow = metrics.refused.labels("slow_watcher").inc
        self._cache = Cache()
        self._answered = {
            way: metrics.answers.labels(way) for way in ("cache", "page", "stream", "watch")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        execution_id = _execution_id(scope)
        headers = Headers(scope=scope)
        caller = await self._access.caller(headers)
        with self._limits.place(caller.key) as place:
            asked = Asked(
                execution_id,
                caller.namespaces,
                scope["query_string"],
                _joined(headers, "accept"),
                _joined(headers, "accept-encoding"),
            )
            response: Response
            if "event-stream" in asked.accept.lower() and choose_format(asked.accept) == "watch":
                response = self._watch(asked, caller, headers)
            else:
                response = await self._answer(asked, _joined(headers, "if-none-match"))
            if isinstance(response, StreamedList | Watch):
                place.become_stream()
            await response(scope, receive, send)

    async def _answer(self, asked: Asked, condition: str) -> Response:
        kept = self._cache.get(asked)
        query = None if kept else _query(asked)
        revisions = None
        if kept is not None or condition:
            revisions = await self._lists.revisions(asked.execution_id, asked.namespaces)
            if kept is not None and kept.revisions == revisions:
                self._answered["cache"].inc()
                return _unless(condition, kept.tag) or kept.response
        query = query or _query(asked)
        format_: Format = "lines" if choose_format(asked.accept) == "lines" else "json"
        tag = partial(entity_tag, query.digest, format_)
        if revisions is not None and (unchanged := _unless(condition, tag(revisions))):
            self._answered["cache"].inc()
            return unchanged
        limit = query.limit or FETCHED_WHOLE
        page = await self._lists.page(query.execution_id, query.selection, asked.namespaces, limit)
        headers = _HEADERS | {"ETag": tag(page.revisions), "Content-Type": _MEDIA_TYPES[format_]}
        encoding = choose_encoding(asked.accept_encoding)
        rendering = Rendering(format_, query.lang)
        if page.last is not None and query.limit is None:
            self._answered["stream"].inc()
            stream = partial(
                self._lists.stream, query.execution_id, query.selection, asked.namespaces, page
            )
            return StreamedList(stream, tag, headers, rendering, encoding, self._stream_limits)
        body = rendering.add(page.bodies) + rendering.end()
        if encoding and len(body) >= WORTH_BYTES:
            compressed = compressor(encoding)
            body = compressed.add(body) + compressed.end()
            headers["Content-Encoding"] = encoding
        response = Response(body, headers=headers | _next(query, page))
        self._answered["page"].inc()
        self._cache.put(asked, Answer(page.revisions, headers["ETag"], response))
        return response

    def _watch(self, asked: Asked, caller: Caller, headers: Headers) -> Watch:
        query = _query(asked)
        if query.limit is not None or query.selection.after is not None:
            raise HTTPException(400, "limit, marker: a watch has no pages")

        async def is_allowed() -> bool:
            try:
                return await self._access.caller(headers) == caller
            except AccessError:
                return False
            except IssuerAwayError:
                # Nobody can tell now; what was true stays so.
                return True

        self._answered["watch"].inc()
        return Watch(
            self._lists,
            self._feeds,
            query,
            caller.namespaces,
            _joined(headers, "last-event-id"),
            _HEADERS,
            is_allowed,
            self._is_slow,
            self._watch_limits,
        )


def _query(asked: Asked) -> Query:
    try:
        return parse_query(asked.execution_id, asked.query_string)
    except QueryError as error:
        raise HTTPException(400, str(error)) from error


def _execution_id(scope: Scope) -> str:
    execution_id: str = scope["path_params"]["execution_id"]
    if scope["path"].endswith("\n"):
        raise HTTPException(404)  # Starlette's pattern ends before a last line break, too.
    if not EXECUTION_ID.fullmatch(execution_id):
        raise HTTPException(
            400, "execution_id: expected 1 to 128 characters of A-Z a-z 0-9 . _ : -"
        )
    return execution_id


def _joined(headers: Headers, name: str) -> str:
    """A header that may be given several times, as if it were given once."""
    return ",".join(headers.getlist(name))


def _unless(condition: str, tag: str) -> Response | None:
    """304 where the caller has what `tag` stands for."""
    if condition and matches(condition, tag):
        return Response(status_code=304, headers=_HEADERS | {"ETag": tag})
    return None


def _next(query: Query, page: Page) -> dict[str, str]:
    if page.last is None:
        return {}
    marker = query.marker_after(page.last)
    return {"X-Next-Marker": marker, "Link": f'<{query.link(marker)}>; rel="next"'}
