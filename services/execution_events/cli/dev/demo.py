"""Executions to look at: a fixed one, and small ones that never end."""

import asyncio
import random
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from execution_events.events import NORMAL, WARNING, Occurrence, event_name
from execution_events.publisher import Publisher
from execution_events.settings import Settings
from execution_events.wire import Origin

SEED_EXECUTION = "e19d3faf-9f04-9685-e5c0-fbe8d40b96cd"
_SEED_SOURCE = "execution-events-dev-seed"
_NAMESPACE = "c51567523b744d098a8a81ede51894ac"
_PAUSE = (0.2, 1.0)
"""Seconds between two events of the workers, at least and at most."""


async def publish_seed(settings: Settings) -> None:
    """Publish the seed execution; again and again it is the same records, counted once."""
    async with Publisher(settings) as publisher:
        for sequence, occurrence in enumerate(_seed()):
            await publisher.publish(occurrence, Origin(_SEED_SOURCE, sequence))


async def run_workers(settings: Settings) -> None:
    """Run small executions, one after the other, with recurrences and failures, for ever."""
    async with Publisher(settings) as publisher:
        while True:
            for occurrence in _execution(random.Random()):  # noqa: S311
                await publisher.publish(occurrence)
                await asyncio.sleep(random.uniform(*_PAUSE))  # noqa: S311


def _seed() -> Iterator[Occurrence]:
    moment = datetime(2018, 8, 20, 6, 41, 44, tzinfo=UTC)
    name = "gcs-exec-3-08-20-144951"
    succeeded, started = _REASONS["SuccessfulFinish"], _REASONS["ActionStart"]
    for report, element, reason in (
        ("154c848add38e9f9", "job-a-init", succeeded),
        ("154c848ade084c88", "job-c-init", started),
        ("154c848ade7ed58e", "job-d-init", started),
    ):
        yield _occurrence(SEED_EXECUTION, name, int(report, 16), element, reason, moment)


class _Reason(NamedTuple):
    text: str
    message: str
    type: str = NORMAL


_REASONS = {
    "ActionStart": _Reason(
        "启动##ActionStart",
        "元素({0})开始执行(create)流程. ## Element({0}) start to Action(create).",
    ),
    "ActionRetry": _Reason(
        "重试##ActionRetry", "元素({0})重试create. ## Element({0}) retry Action: create", WARNING
    ),
    "ActionFailed": _Reason(
        "执行失败##ActionFailed",
        "元素({0})执行create失败. ## Element({0}) execute Action: create failed",
        WARNING,
    ),
    "SuccessfulFinish": _Reason(
        "执行成功##SuccessfulFinish",
        "元素({0})执行create成功. ## Element({0}) execute Action: create successfully",
    ),
}


def _execution(rng: random.Random) -> Iterator[Occurrence]:
    """One execution of a few elements: each starts, may retry, and succeeds or fails."""
    execution_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    object_name = f"demo-{rng.randrange(16**6):06x}"
    for letter in "abcdef"[: rng.randint(2, 6)]:
        element = f"job-{letter}"
        retries = rng.choice((0, 0, 0, 1, 3))
        end = "ActionFailed" if rng.random() < 0.15 else "SuccessfulFinish"
        for code, times in (("ActionStart", 1), ("ActionRetry", retries), (end, 1)):
            # Recurrences of one event have one name, so they become one row with a count.
            report = time.time_ns()
            for _ in range(times):
                now = datetime.now(UTC)
                yield _occurrence(execution_id, object_name, report, element, _REASONS[code], now)


def _occurrence(
    execution_id: str,
    object_name: str,
    report: int,
    element: str,
    reason: _Reason,
    moment: datetime,
) -> Occurrence:
    return Occurrence(
        execution_id=execution_id,
        namespace=_NAMESPACE,
        name=event_name(object_name, report),
        object_name=object_name,
        object_namespace=_NAMESPACE,
        reason=reason.text,
        message=reason.message.format(element),
        first_timestamp=moment,
        last_timestamp=moment,
        count=1,
        type=reason.type,
        elem_type="KubeDAG.init",
        elem_id=element,
        action_name="create",
    )
