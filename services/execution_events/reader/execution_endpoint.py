"""`GET /v1/executions`: from the headers of a request to its response."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from execution_events.reader.execution_query import ExecutionQuery, parse_execution_query
from execution_events.reader.execution_rendering import render_executions
from execution_events.reader.parameters import QueryError
from execution_events.reader.rendering import ListFormat, entity_tag
from execution_events.reader.responses import MEDIA_TYPES, joined, next_page, not_modified, whole
from execution_events.reader.streaming import HEADERS
from execution_events.store.read.events import EventReader
from execution_events.web.auth.access import Access, Caller
from execution_events.web.limits import ConcurrencyLimits
from execution_events.web.negotiation import choose_format

_NOT_ACCEPTABLE = "Accept: expected application/json, application/x-ndjson or */*"


class ExecutionsEndpoint:
    """The executions that a caller may read, a page at a time, each from one snapshot."""

    def __init__(self, events: EventReader, access: Access, limits: ConcurrencyLimits) -> None:
        self._events = events
        self._access = access
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("\n"):
            raise HTTPException(404)  # Starlette's pattern also matches before a final line break.
        headers = Headers(scope=scope)
        caller = await self._access.caller(headers)
        with self._limits.slot(caller.limit_key):
            match choose_format(joined(headers, "accept"), can_watch=False):
                case "json" | "lines" as format_:
                    query = _query(scope["query_string"])
                    response = await self._page(query, caller, format_, headers)
                case _:
                    raise HTTPException(406, _NOT_ACCEPTABLE)
            await response(scope, receive, send)

    async def _page(
        self, query: ExecutionQuery, caller: Caller, format_: ListFormat, headers: Headers
    ) -> Response:
        page = await self._events.executions(
            query.selection, caller.namespaces, query.limit, caller.share
        )
        fields = HEADERS | {"Content-Type": MEDIA_TYPES[format_]}
        if page.revisions is not None:
            tag = entity_tag(query.digest, format_, page.revisions)
            if unchanged := not_modified(joined(headers, "if-none-match"), tag):
                return unchanged
            fields["ETag"] = tag
        if page.last is not None:
            marker = query.marker_after(page.last)
            fields |= next_page(marker, query.parameters.link(marker))
        body = render_executions(page.executions, format_, query.lang, query.times)
        return whole(body, fields, joined(headers, "accept-encoding"))


def _query(query_string: bytes) -> ExecutionQuery:
    try:
        return parse_execution_query(query_string)
    except QueryError as error:
        raise HTTPException(400, str(error)) from error
