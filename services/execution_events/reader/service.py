"""The reader's process."""

import asyncio
import ipaddress
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from execution_events.errors import RetryableError, SettingsError
from execution_events.logs import Logger
from execution_events.metrics import ReaderMetrics
from execution_events.reader.app import create_app
from execution_events.settings import Settings, variable_of
from execution_events.store.probe import DatabaseProbe
from execution_events.store.read.events import EventReader
from execution_events.store.read.feeds import Feeds
from execution_events.web.auth.access import Access
from execution_events.web.auth.issuer import Issuer
from execution_events.web.auth.token_file import TokenFile
from execution_events.web.connections import Bounds
from execution_events.web.limits import Limits
from execution_events.web.management import serve_management
from execution_events.web.probe import Probe
from execution_events.web.server import serve

_log = Logger(__name__)

_OTHER_FILES = 256
"""Open files beside the connections of clients: those to the database, the log, libraries."""


async def run_reader(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then finish open requests.

    It starts without the database, answers 503 while that is away, and is not ready. Raises
    `HaltError` for a schema that it does not know, and `SettingsError` for an address that others
    can reach where nothing tells callers apart, or a token file that cannot be read.
    """
    if settings.auth.tokens_file is None and settings.auth.jwks_url is None:
        _require_loopback(settings.reader.host)
    _allow_open_files(settings.reader.max_connections + _OTHER_FILES)
    registry = CollectorRegistry()
    metrics = ReaderMetrics(registry)
    url = settings.database.require_url()
    async with (
        EventReader.open(url) as lists,
        DatabaseProbe(url, writes=False) as database,
        _access(settings, metrics) as access,
        Feeds.open(lists) as feeds,
    ):
        try:
            await lists.check()
        except RetryableError as error:
            _log.warning("the database is away", error=str(error))

        probe = Probe(
            f"PostgreSQL at {database.address}",
            database.check,
            metrics.answered.labels("postgresql"),
        )

        async def readiness() -> list[str]:
            problem = await probe.check_now()
            return [*([] if problem is None else [problem]), *access.problems()]

        app = create_app(lists, feeds, metrics, access, Limits(settings.reader, metrics))
        bounds = Bounds(
            connections=settings.reader.max_connections,
            head=settings.reader.head_timeout,
            idle=settings.reader.idle_timeout,
            write=settings.reader.write_timeout,
        )
        async with (
            probe.running(),
            serve_management(
                settings.management.host, settings.management.port, registry, readiness
            ) as management,
            serve(
                app,
                settings.reader.host,
                settings.reader.port,
                bounds,
                lambda reason: metrics.refused.labels(reason).inc(),
            ) as address,
        ):
            _log.info("reader started", address=address, management=management)
            await stop.wait()
            feeds.close()
    _log.info("reader stopped")


@asynccontextmanager
async def _access(settings: Settings, metrics: ReaderMetrics) -> AsyncIterator[Access]:
    """What tells callers apart."""
    if settings.auth.tokens_file is not None:
        async with TokenFile.open(Path(settings.auth.tokens_file), metrics) as tokens:
            yield Access(tokens, metrics)
    elif settings.auth.jwks_url is not None:
        async with Issuer.open(
            settings.auth.jwks_url,
            settings.auth.jwt_audience or "",
            settings.auth.jwt_issuer or "",
            settings.auth.jwt_namespaces_claim,
            metrics,
        ) as issuer:
            yield Access(issuer, metrics)
    else:
        _log.warning("there are no tokens: everybody on this machine may read all")
        yield Access(None, metrics)


def _allow_open_files(number: int) -> None:
    """Raise the process's own limit; what the system allows beyond is its administrator's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        allowed = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < number:
            _log.warning("too few open files for all connections", allowed=allowed, wanted=number)


def _require_loopback(host: str) -> None:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise SettingsError(f"{variable_of('reader_host')}: {host!r}: {error.strerror}") from error
    if not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise SettingsError(
            f"{variable_of('reader_host')}: the reader has no tokens to tell callers apart, so it "
            f"serves only loopback addresses such as 127.0.0.1, not {host!r}"
        )
