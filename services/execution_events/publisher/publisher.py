"""The publisher of a worker."""

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
from execution_events.publisher.event import Event, occurrence_of
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.directory import open_spool
from execution_events.publisher.tracing import current_traceparent
from execution_events.settings import Settings

_log = Logger(__name__)

OTHER_LOOP = "the publisher was opened in another event loop: open one in this event loop"


class Publisher:
    """A publisher of events; an asynchronous context manager.

    With a spool (the setting SPOOL_DIR), an event is durable on the local disk when `publish`
    returns: Kafka may be unavailable and the process may be killed, and the event is counted
    exactly once, when this or any later publisher on the directory, or
    `execution-events spool drain`, reaches Kafka. Without a spool, an event is on all in-sync
    replicas of Kafka when `publish` returns; if `publish` raises, it may or may not be in the log.

    Within one execution, an event published after `publish` of another has returned comes after it
    in the log. A publisher belongs to the event loop and the process that opened it: in another
    loop, or after a fork, every call raises a RuntimeError; open another publisher there.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._delivery: DirectDelivery | SpooledDelivery | None = None
        self._process = 0
        self._own_loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_settings(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return a publisher with the settings of `environ`, by default `os.environ`.

        Raises `SettingsError`, which names the wrong variable.
        """
        return cls(settings_module.load(os.environ if environ is None else environ))

    async def __aenter__(self) -> Self:
        if self._delivery is not None:
            raise RuntimeError("the publisher is already open")
        settings = self._settings
        if settings.publisher.spool_dir is None:
            self._delivery = await DirectDelivery(settings.kafka, settings.publisher).__aenter__()
        else:
            self._delivery = await _open_spooled(settings, Path(settings.publisher.spool_dir))
        self._process = os.getpid()
        self._own_loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # In a fork it belongs to the parent.
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
        """Return an element of an execution; its actions and events use this publisher."""
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

        Raises `EventError` for an event outside the bounds, and `RetryableError` when it cannot be
        made durable: Kafka or the spool is unavailable, or the spool is full. If the caller is
        cancelled meanwhile, the event may still be published.
        """
        delivery = self._open()
        await delivery.deliver(PendingRecord.of(occurrence_of(event), current_traceparent()))

    async def flush(self, timeout: float | None = None) -> None:
        """Return when Kafka has acknowledged every event published before.

        Raises `RetryableError` after `timeout` seconds; the events remain pending.
        """
        delivery = self._open()
        try:
            async with asyncio.timeout(timeout):
                await delivery.flush()
        except TimeoutError:
            raise RetryableError(
                f"Kafka has not acknowledged all events within {timeout} s"
            ) from None

    async def close(self) -> int:
        """Deliver pending events for at most the setting CLOSE_TIMEOUT, then stop within 5 s.

        Returns the number of events not delivered: with a spool they stay in it, without one their
        `publish` raises `RetryableError`. Closing again does nothing.
        """
        if self._delivery is None:
            return 0
        delivery, self._delivery = self._open(), None
        undelivered = await delivery.close()
        if undelivered:
            _log.warning("events_undelivered", events=undelivered)
        return undelivered

    def _open(self) -> DirectDelivery | SpooledDelivery:
        if self._delivery is None:
            raise RuntimeError("the publisher is not open")
        if self._process != os.getpid():
            raise RuntimeError("the publisher was opened before a fork: open one in this process")
        if self._own_loop is not asyncio.get_running_loop():
            raise RuntimeError(OTHER_LOOP)
        return self._delivery


async def _open_spooled(settings: Settings, directory: Path) -> SpooledDelivery:
    # In a thread, because checking a large file takes time.
    opening = asyncio.create_task(
        asyncio.to_thread(open_spool, directory, settings.publisher.spool_max_bytes)
    )
    try:
        spool = await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The thread opens it anyway.
        (await opening).close()
        raise
    try:
        return await SpooledDelivery(settings.kafka, settings.publisher, spool).__aenter__()
    except BaseException:
        spool.close()
        raise
