"""Publishers for the tests of workers, which record events in memory and need no Kafka.

Pass one to the worker as its publisher. The recorded events are in `events`, named, dated and
checked exactly as by the real publishers:

    async with RecordingPublisher() as publisher:
        await work(publisher)
    assert [event.reason for event in publisher.events] == ["启动##ActionStart", …]
"""

import asyncio
from types import TracebackType
from typing import Self

from execution_events import publisher, sync
from execution_events.events import Occurrence
from execution_events.publisher.event import Event, occurrence_of
from execution_events.publisher.publisher import OTHER_LOOP
from execution_events.settings import Settings


class RecordingPublisher(publisher.Publisher):
    """A `Publisher` that records published events in memory, in order, in `events`."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings or Settings())
        self.events: list[Occurrence] = []
        self._is_open = False

    async def __aenter__(self) -> Self:
        self._is_open = True
        self._own_loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def publish(self, event: Event) -> None:
        self._check_open()
        self.events.append(occurrence_of(event))

    async def flush(self, timeout: float | None = None) -> None:
        self._check_open()

    async def close(self) -> int:
        if self._is_open:
            self._check_open()
        self._is_open = False
        return 0

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("the publisher is not open")
        if self._own_loop is not asyncio.get_running_loop():
            raise RuntimeError(OTHER_LOOP)


class SyncRecordingPublisher(sync.Publisher):
    """A `sync.Publisher` that records published events in memory, in order, in `events`."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings or Settings())

    @property
    def events(self) -> list[Occurrence]:
        return self._recording.events

    def _asynchronous(self, settings: Settings) -> publisher.Publisher:
        self._recording = RecordingPublisher(settings)
        return self._recording
