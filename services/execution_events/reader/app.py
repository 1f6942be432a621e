"""The API of design section 5; `schemas/openapi.json` is its contract."""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from execution_events.metrics import ReaderMetrics
from execution_events.reader.endpoint import EventsEndpoint
from execution_events.reader.streaming import StreamLimits
from execution_events.reader.watch import Lists, WatchLimits
from execution_events.store.read.feeds import Feeds
from execution_events.web.application import application
from execution_events.web.auth.access import Access
from execution_events.web.limits import Limits

_EXPLANATIONS = {
    404: "there is nothing here; try GET /v1/executions/{execution_id}/events",
    405: "only GET and HEAD are answered here",
}


def create_app(
    lists: Lists,
    feeds: Feeds,
    metrics: ReaderMetrics,
    access: Access,
    limits: Limits,
    stream_limits: StreamLimits = StreamLimits(),  # noqa: B008 - a value
    watch_limits: WatchLimits = WatchLimits(),  # noqa: B008 - a value
) -> ASGIApp:
    """Return the API over `lists`."""
    contract = files(__package__).joinpath("openapi.json").read_bytes()
    events = EventsEndpoint(lists, feeds, metrics, access, limits, stream_limits, watch_limits)

    async def openapi(_: Request) -> Response:
        return Response(contract, media_type="application/json")

    return application(
        [
            Route("/v1/executions/{execution_id}/events", events, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
        ],
        metrics,
        _EXPLANATIONS,
    )
