"""Sample executions: a fixed one, and workers that run others without end."""

import asyncio
import itertools
import random
import uuid
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from execution_events.publisher import Element, Event, Publisher, lifecycle
from execution_events.publisher.delivery.direct import DirectDelivery
from execution_events.publisher.event import occurrence_of
from execution_events.publisher.record import PendingRecord
from execution_events.settings import Settings

SEED_EXECUTION = "e19d3faf-9f04-9685-e5c0-fbe8d40b96cd"
_SEED_SOURCE = "execution-events-dev-seed"
_NAMESPACE = "c51567523b744d098a8a81ede51894ac"
_ELEMENT_TYPE = "KubeDAG.init"
_ACTION = "create"
_ETL = (("extract", 10), ("clean", 10), ("aggregate", 6), ("load", 3), ("report", 1))
"""The stages of an ETL and their numbers of elements."""
_SMALL_AT_ONCE = 3
_FAILING = 30
"""Of so many small executions, one fails, with three elements."""
_RETRYING = 7
"""Of so many elements, one retries."""
_PULLING = 15
"""Of so many elements, one pulls its image for long."""
_BACKOFF = (1, 2, 4)
"""Seconds between retries."""
_LONG_PULL = (30, 60)
"""Range of seconds."""


async def publish_seed(settings: Settings) -> None:
    """Publish the seed execution; each time as the same records, which are counted once."""
    async with DirectDelivery(
        settings.kafka, settings.publisher, source=_SEED_SOURCE, first_sequence=0
    ) as delivery:
        for event in _seed():
            await delivery.deliver(PendingRecord.of(occurrence_of(event)))


def _seed() -> Iterator[Event]:
    object_name = "gcs-exec-3-08-20-144951"
    for report, element, reason in (
        (0x154C848ADD38E9F9, "job-a-init", lifecycle.SUCCESSFUL_FINISH),
        (0x154C848ADE084C88, "job-c-init", lifecycle.ACTION_START),
        (0x154C848ADE7ED58E, "job-d-init", lifecycle.ACTION_START),
    ):
        yield Event(
            execution_id=SEED_EXECUTION,
            namespace=_NAMESPACE,
            name=f"{object_name}.{report:x}",
            object_name=object_name,
            reason=reason.text,
            message=reason.message(element, _ACTION),
            last_timestamp=datetime(2018, 8, 20, 6, 41, 44, tzinfo=UTC),
            elem_type=_ELEMENT_TYPE,
            elem_id=element,
            action_name=_ACTION,
        )


class _DemoError(Exception):
    """An error of a demo element."""


class Demo:
    """Workers that run executions until they are cancelled.

    Three small executions and one ETL of 30 elements run at a time. Some elements retry with
    back-off, some pull an image for long; of thirty small executions one fails. `speed` divides all
    durations. Failures and retries have a fixed rhythm, so that ten minutes have some of each.
    """

    def __init__(self, publisher: Publisher, speed: float = 1.0) -> None:
        self._publisher = publisher
        self._speed = speed
        self._rng = random.Random()  # noqa: S311
        self._executions = itertools.count(1)
        self._elements = itertools.count(1)

    async def run(self) -> None:
        """Run executions until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._repeat(self._run_etl))
                for _ in range(_SMALL_AT_ONCE):
                    group.create_task(self._repeat(self._run_small))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _repeat(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await run()
            await self._pause(1, 5)

    async def _run_etl(self) -> None:
        element = self._new_execution("etl")
        for stage, size in _ETL:
            names = [stage] if size == 1 else [f"{stage}-{n:02}" for n in range(1, size + 1)]
            await self._run_stage([element(name) for name in names], (5, 40))

    async def _run_small(self) -> None:
        element = self._new_execution("demo")
        fails = next(self._executions) % _FAILING == _FAILING // 2
        await self._run_stage([element("job-a")], (2, 8))
        branches = [element(f"job-{letter}") for letter in "bcd"]
        if not await self._run_stage(branches, (3, 15), fails=fails):
            return
        await self._run_stage([element("job-e")], (2, 8))

    async def _run_stage(
        self, elements: list[Element], seconds: tuple[float, float], *, fails: bool = False
    ) -> bool:
        """Run the elements at once; return whether all succeeded."""
        results = await asyncio.gather(
            *(self._run_element(element, seconds, fails=fails) for element in elements)
        )
        return all(results)

    async def _run_element(
        self, element: Element, seconds: tuple[float, float], *, fails: bool
    ) -> bool:
        number = next(self._elements)
        try:
            async with element.action(_ACTION) as action:
                await element.event("镜像拉取##PullImage", "拉取镜像. ## Pulling image.")
                await self._pause(*(_LONG_PULL if number % _PULLING == 5 else (0.5, 2)))
                await element.event("镜像就绪##ImagePulled", "镜像已拉取. ## Image pulled.")
                if number % _RETRYING == 0:
                    for delay in _BACKOFF:
                        await action.retry()
                        await self._pause(delay, delay * 1.25)
                await self._pause(*seconds)
                if fails:
                    raise _DemoError("exit code 137 (OOMKilled)")
        except _DemoError:
            return False
        return True

    def _new_execution(self, kind: str) -> Callable[[str], Element]:
        """Return a function from the id of an element to the element."""
        return partial(
            self._element,
            str(uuid.UUID(int=self._rng.getrandbits(128), version=4)),
            f"{kind}-{self._rng.randrange(16**6):06x}",
        )

    def _element(self, execution_id: str, object_name: str, elem_id: str) -> Element:
        return self._publisher.element(
            execution_id=execution_id,
            namespace=_NAMESPACE,
            object_name=object_name,
            elem_type=_ELEMENT_TYPE,
            elem_id=elem_id,
        )

    async def _pause(self, low: float, high: float) -> None:
        await asyncio.sleep(self._rng.uniform(low, high) / self._speed)


async def run_workers(settings: Settings) -> None:
    """Run the demo until cancelled."""
    async with Publisher(settings) as publisher:
        await Demo(publisher).run()
