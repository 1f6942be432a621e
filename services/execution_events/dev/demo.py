"""Sample executions: a fixed one, and workers that run small ones."""

import asyncio
import random
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

from execution_events.publisher import Event, Publisher, lifecycle
from execution_events.publisher.delivery.direct import DirectDelivery
from execution_events.publisher.event import occurrence_of
from execution_events.publisher.record import PendingRecord
from execution_events.settings import Settings

SEED_EXECUTION = "e19d3faf-9f04-9685-e5c0-fbe8d40b96cd"
_SEED_SOURCE = "execution-events-dev-seed"
_NAMESPACE = "c51567523b744d098a8a81ede51894ac"
_ELEMENT_TYPE = "KubeDAG.init"
_ACTION = "create"
_PAUSE = (0.2, 1.0)
"""Range of the seconds between two events of the workers."""


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


async def run_workers(settings: Settings) -> None:
    """Run small executions one after another, with recurrences and failures, until cancelled."""
    async with Publisher(settings) as publisher:
        while True:
            await _run_execution(publisher, random.Random())  # noqa: S311


async def _run_execution(publisher: Publisher, rng: random.Random) -> None:
    """Run a few elements; each starts, may retry, and succeeds or fails."""
    execution_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    object_name = f"demo-{rng.randrange(16**6):06x}"
    for letter in "abcdef"[: rng.randint(2, 6)]:
        element = publisher.element(
            execution_id=execution_id,
            namespace=_NAMESPACE,
            object_name=object_name,
            elem_type=_ELEMENT_TYPE,
            elem_id=f"job-{letter}",
        )
        with suppress(_DemoError):
            async with element.action(_ACTION) as action:
                for _ in range(rng.choice((0, 0, 0, 1, 3))):
                    await asyncio.sleep(rng.uniform(*_PAUSE))
                    await action.retry()
                await asyncio.sleep(rng.uniform(*_PAUSE))
                if rng.random() < 0.15:
                    raise _DemoError("exit code 1")
        await asyncio.sleep(rng.uniform(*_PAUSE))
