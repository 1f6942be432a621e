"""What a worker publishes with."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from execution_events import settings as settings_module
from execution_events.errors import RetryableError
from execution_events.logs import Logger
from execution_events.publisher.delivery.direct import DirectDelivery
from execution_events.publisher.delivery.spooled import SpooledDelivery
from execution_events.publisher.element import Element
from execution_events.publisher.event import Event
from execution_events.publisher.naming import Names
from execution_events.publisher.record import NewRecord
from execution_events.publisher.spool.directory import open_spool
from execution_events.publisher.tracing import current_traceparent
from execution_events.settings import Settings

_logger = Logger(__name__)

OTHER_LOOP = "the publisher was opened in another event loop: open one in this"


class Publisher:
    """Publishes the events of a worker; an asynchronous context manager.

    With a spool (the setting SPOOL_DIR) an event is durable on this machine's disk when `publish`
    returns: Kafka may be away, the process may be killed, and the event is counted exactly once,
    when this or any later publisher on the directory, or `execution-events spool drain`, reaches
    Kafka. Without one it is on all in-sync replicas of Kafka when `publish` returns; one whose
    `publish` has raised may be or may not be in the log.

    Of one execution, an event whose `publish` was called after that of another had returned comes
    after it in the log. A publisher belongs to the event loop and the process that opened it: in
    another loop, or after a fork, every call raises a RuntimeError; open another publisher there.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._names = Names()
        self._delivery: DirectDelivery | SpooledDelivery | None = None
        self._process = 0
        self._own_loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_settings(cls, environ: Mapping[str, str] | None = None) -> Self:
        """One with the settings of `environ`, of `os.environ` without it.

        Raises `SettingsError`, which names the wrong variable.
        """
        return cls(settings_module.load(os.environ if environ is None else environ))

    async def __aenter__(self) -> Self:
        if self._delivery is not None:
            raise RuntimeError("the publisher is open already")
        settings = self._settings
        if settings.publisher.spool_dir is None:
            self._delivery = await DirectDelivery(settings).__aenter__()
        else:
            self._delivery = await _spooled(settings, Path(settings.publisher.spool_dir))
        self._process = os.getpid()
        self._own_loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # In a fork it is the parent's to close.
        if self._process == os.getpid():
            await self.close()

    def element(
        self,
        *,
        execution_id: str,
        namespace: str,
        object_name: str,
        elem_type: str,
        elem_id: str,
        object_namespace: str | None = None,
    ) -> Element:
        """An element of an execution, whose actions and events are published with this one."""
        return Element(
            self,
            execution_id=execution_id,
            namespace=namespace,
            object_name=object_name,
            elem_type=elem_type,
            elem_id=elem_id,
            object_namespace=object_namespace,
        )

    async def publish(self, event: Event) -> None:
        """Return when `event` is durable.

        Raises `EventError` for an event that no consumer would take, and `RetryableError` where it
        could not be made durable: Kafka or the spool is away, or the spool is full. When the caller
        is cancelled meanwhile, the event may still be published.
        """
        delivery = self._open()
        occurrence = self._names.occurrence(event)
        await delivery.keep(NewRecord.of(occurrence, current_traceparent()))

    async def flush(self, timeout: float | None = None) -> None:
        """Return when Kafka has acknowledged everything that was published before.

        Raises `RetryableError` after `timeout` seconds; nothing is lost by that.
        """
        delivery = self._open()
        try:
            async with asyncio.timeout(timeout):
                await delivery.flush()
        except TimeoutError:
            raise RetryableError(f"Kafka has not acknowledged all within {timeout} s") from None

    async def close(self) -> int:
        """Deliver what is left, for at most the setting CLOSE_TIMEOUT, and stop, within 5 s more.

        Gives how many events were not delivered: with a spool they stay in it, without one their
        `publish` raises `RetryableError`. Closing again does nothing.
        """
        if self._delivery is None:
            return 0
        delivery, self._delivery = self._open(), None
        left = await delivery.close()
        if left:
            _logger.warning("publisher closed with events left", events=left)
        return left

    def _open(self) -> DirectDelivery | SpooledDelivery:
        if self._delivery is None:
            raise RuntimeError("the publisher is not open")
        if self._process != os.getpid():
            raise RuntimeError("the publisher was opened before a fork: open one in this process")
        if self._own_loop is not asyncio.get_running_loop():
            raise RuntimeError(OTHER_LOOP)
        return self._delivery


async def _spooled(settings: Settings, directory: Path) -> SpooledDelivery:
    # In a thread, because checking a large file takes a while.
    opening = asyncio.create_task(
        asyncio.to_thread(open_spool, directory, settings.publisher.spool_max_bytes)
    )
    try:
        spool = await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The thread opens it all the same.
        (await opening).close()
        raise
    try:
        return await SpooledDelivery(settings, spool).__aenter__()
    except BaseException:
        spool.close()
        raise
