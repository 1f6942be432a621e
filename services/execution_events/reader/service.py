"""The reader's process."""

import asyncio
import ipaddress
import socket

from prometheus_client import CollectorRegistry

from execution_events.errors import ExecutionEventsError, RetryableError, SettingsError
from execution_events.management import ReaderMetrics, serve_management
from execution_events.observability import Logger
from execution_events.reader.app import create_app
from execution_events.serving import serve
from execution_events.settings import Settings, variable_of
from execution_events.store.listing import EventLists

_log = Logger(__name__)


async def run_reader(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then finish open requests.

    It starts without the database, answers 503 while that is away, and is not ready. Raises
    `HaltError` for a schema that it does not know, and `SettingsError` for an address that others
    can reach, as nothing tells callers apart yet.
    """
    _require_loopback(settings.reader_host)
    registry = CollectorRegistry()
    async with EventLists.open(settings.require_database_url()) as lists:
        try:
            await lists.check()
        except RetryableError as error:
            _log.warning("the database is away", error=str(error))

        async def readiness() -> list[str]:
            try:
                await lists.check()
            except ExecutionEventsError as error:
                return [str(error)]
            return []

        app = create_app(lists, ReaderMetrics(registry))
        async with (
            serve_management(
                settings.management_host, settings.management_port, registry, readiness
            ) as management,
            serve(app, settings.reader_host, settings.reader_port) as address,
        ):
            _log.info("reader started", address=address, management=management)
            await stop.wait()
    _log.info("reader stopped")


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
