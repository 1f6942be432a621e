"""The reader's API in this process, with limits chosen by a test."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
from prometheus_client import CollectorRegistry

from execution_events.metrics import ReaderMetrics
from execution_events.reader.app import create_app
from execution_events.reader.endpoint import EventsEndpoint
from execution_events.reader.execution_endpoint import ExecutionsEndpoint
from execution_events.reader.watch import Watches, WatchTimeouts
from execution_events.store.read.events import EventReader
from execution_events.store.read.feeds import Feeds
from execution_events.web.auth.access import Access
from execution_events.web.limits import ConcurrencyLimits
from execution_events.web.server import serve
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE


class Api(NamedTuple):
    """A reader's API in this process."""

    client: httpx.AsyncClient
    feeds: Feeds
    lists: EventReader
    registry: CollectorRegistry

    @property
    def watchers(self) -> int:
        """The number of open watches."""
        return sum(len(feed.watchers) for feed in self.feeds._feeds.values())

    def refused(self, reason: str) -> float:
        name = "execution_events_refused_total"
        return self.registry.get_sample_value(name, {"reason": reason}) or 0


@asynccontextmanager
async def serving(
    database_url: str,
    timeouts: WatchTimeouts = WatchTimeouts(),  # noqa: B008 - a value
    credentials: Any = lambda _: contextlib.nullcontext(),
) -> AsyncIterator[Api]:
    """Serve an API whose watches have these timeouts; `credentials` opens the source of tokens."""
    registry = CollectorRegistry()
    metrics = ReaderMetrics(registry)
    settings = configured(reader_max_streams=200, reader_max_streams_per_token=200)
    async with (
        EventReader.open(database_url) as lists,
        credentials(metrics) as known,
        Feeds.open(lists) as feeds,
    ):
        access, limits = Access(known, metrics), ConcurrencyLimits(settings.reader, metrics)
        watches = Watches(lists, feeds, access, metrics, timeouts)
        app = create_app(
            ExecutionsEndpoint(lists, access, limits),
            EventsEndpoint(lists, watches, access, limits, metrics),
            metrics,
        )
        async with (
            serve(app) as address,
            httpx.AsyncClient(base_url=address, timeout=DEADLINE) as client,
        ):
            yield Api(client, feeds, lists, registry)
            feeds.close()
