"""The reader's process."""

import asyncio
import ipaddress
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from execution_events.errors import MisconfiguredError, RetryableError, SettingsError
from execution_events.logs import Logger
from execution_events.metrics import ReaderMetrics
from execution_events.reader.app import create_app
from execution_events.reader.endpoint import EventsEndpoint
from execution_events.reader.execution_endpoint import ExecutionsEndpoint
from execution_events.reader.watch import Watches
from execution_events.settings import AuthSettings, ReaderSettings, Settings, variable_of
from execution_events.store.probe import DatabaseProbe
from execution_events.store.read.events import EventReader
from execution_events.store.read.feeds import Feeds
from execution_events.web.admission import Admission
from execution_events.web.auth.access import Access
from execution_events.web.auth.issuer import Issuer
from execution_events.web.auth.token_file import TokenFile
from execution_events.web.connections import ConnectionLimits
from execution_events.web.limits import ConcurrencyLimits
from execution_events.web.management import serve_management
from execution_events.web.probe import Probe
from execution_events.web.server import Address, ServerOptions, serve

_log = Logger(__name__)

_CLOSING_TIME = 2
"""Seconds of the stop timeout for closing connections, after the last request."""
_OTHER_FILES = 256
"""Open files other than client connections: database connections, logs, libraries."""


async def run_reader(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set and `drain_delay` has passed, then finish requests in progress.

    The database may be unavailable: until it answers, requests get 503 and `/readyz` fails. Raises
    `HaltError` for an unknown schema version, `MisconfiguredError` for a login that is refused, and
    `SettingsError` for a token file that is unreadable or invalid, and for a non-loopback address
    without tokens.
    """
    reader, management = settings.reader, settings.management
    is_anonymous = settings.auth.tokens_file is None and settings.auth.jwks_url is None
    if is_anonymous:
        _require_loopback(reader.host)
    drain_delay = min(reader.drain_delay, settings.stop_timeout - _CLOSING_TIME - 1)
    _raise_file_limit(reader.max_connections + _OTHER_FILES)
    registry = CollectorRegistry()
    metrics = ReaderMetrics(registry)
    url = settings.database.require_url()
    prepares = settings.database.prepares_statements
    async with (
        EventReader.open(url, prepares=prepares) as events,
        DatabaseProbe(url, writes=False, prepares=prepares) as database,
        _open_access(settings.auth, metrics) as access,
        Feeds.open(events) as feeds,
    ):
        try:
            await events.check()
        except MisconfiguredError:
            raise
        except RetryableError as error:
            _log.warning("database_unavailable", error=str(error))
        probe = Probe(
            f"PostgreSQL at {database.address}",
            database.check,
            metrics.answered.labels("postgresql"),
        )

        async def readiness() -> list[str]:
            if stop.is_set():
                return ["the reader is stopping"]
            problem = await probe.check_now()
            return [*([] if problem is None else [problem]), *access.problems()]

        watches = Watches(events, feeds, access, metrics)
        limits = ConcurrencyLimits(reader, metrics)
        app = create_app(
            ExecutionsEndpoint(events, access, limits),
            EventsEndpoint(events, watches, access, limits, metrics),
            metrics,
        )
        async with (
            probe.running(),
            serve_management(management, registry, readiness) as management_url,
            serve(
                app,
                Address(
                    reader.host, reader.port, variable_of("reader_host"), variable_of("reader_port")
                ),
                ServerOptions(
                    _connection_limits(reader),
                    Admission(
                        lambda reason: metrics.refused.labels(reason).inc(),
                        local_hosts_only=is_anonymous,
                        cors_origins=reader.cors_origins.split(",") if reader.cors_origins else (),
                    ),
                    settings.stop_timeout - drain_delay - _CLOSING_TIME,
                ),
            ) as url,
        ):
            _log.info("reader_started", address=url, management=management_url)
            await stop.wait()
            _log.info("reader_draining", seconds=drain_delay)
            await asyncio.sleep(drain_delay)
            feeds.close()
    _log.info("reader_stopped")


@asynccontextmanager
async def _open_access(settings: AuthSettings, metrics: ReaderMetrics) -> AsyncIterator[Access]:
    """Yield authentication by the token file or the JWTs of the settings."""
    if settings.tokens_file is not None:
        async with TokenFile.open(Path(settings.tokens_file), metrics) as tokens:
            yield Access(tokens, metrics)
    elif settings.jwks_url is not None:
        async with Issuer.open(
            settings.jwks_url,
            settings.jwt_audience or "",
            settings.jwt_issuer or "",
            settings.jwt_namespaces_claim,
            metrics,
        ) as issuer:
            yield Access(issuer, metrics)
    else:
        _log.warning("authentication_disabled", namespaces="all")
        yield Access(None, metrics)


def _connection_limits(settings: ReaderSettings) -> ConnectionLimits:
    return ConnectionLimits(
        connections=settings.max_connections,
        head_timeout=settings.head_timeout,
        idle_timeout=settings.idle_timeout,
        write_timeout=settings.write_timeout,
    )


def _raise_file_limit(wanted: int) -> None:
    """Raise the soft limit on open files to `wanted`, or to the hard limit with a warning."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            _log.warning("open_file_limit_too_low", allowed=allowed, wanted=wanted)


def _require_loopback(host: str) -> None:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise SettingsError(
            f"{variable_of('reader_host')}: {host}: {error.strerror}: give an address of this"
            " machine"
        ) from error
    if not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise SettingsError(
            f"{variable_of('reader_host')}: expected a loopback address such as 127.0.0.1, got"
            f" {host}; to serve others, set {variable_of('tokens_file')} or"
            f" {variable_of('jwks_url')}"
        )
