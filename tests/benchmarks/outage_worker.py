"""Worker process with a spool that publishes at a steady rate, also while its broker is down.

    python -m tests.benchmarks.outage_worker RATE

Settings are in the environment. Each line of standard input is a command, answered with a line of
JSON: `mark` returns the times of the `publish` calls since the last mark, `flush` waits until Kafka
has all events published before, `stop` ends the load and closes the publisher.
"""

import asyncio
import logging
import os
import sys
import time
from typing import Any

from execution_events import settings as settings_module
from execution_events.errors import RetryableError
from execution_events.publisher import Publisher, lifecycle
from tests.benchmarks.figures import percentile
from tests.benchmarks.lines import answer, lines
from tests.benchmarks.schedule import Schedule
from tests.benchmarks.workload import EVENTS_OF_AN_EXECUTION, OBJECT_NAME, event

ELEMENTS = 200
"""Publishing tasks; each publishes its share of the rate one event after another."""
FLUSH_TIMEOUT = 300
"""Seconds."""


class Load:
    """Publishing tasks and the times of their calls since the last `mark`."""

    def __init__(self, publisher: Publisher, rate: int) -> None:
        self._publisher = publisher
        self._elements = min(ELEMENTS, rate)
        self._stopping = asyncio.Event()
        self._schedule = Schedule(rate)
        self.published: list[int] = [0] * self._elements
        self.failures: list[str] = []
        self.seconds: list[float] = []

    async def run(self) -> None:
        """Publish until `stop`."""
        async with asyncio.TaskGroup() as group:
            for element in range(self._elements):
                group.create_task(self._publish(element))

    @property
    def late(self) -> float:
        """The longest delay in seconds of a call since the last mark."""
        return self._schedule.late

    def stop(self) -> None:
        """End every task after its next event."""
        self._stopping.set()

    def mark(self) -> None:
        """Reset the times and delays of calls."""
        self.seconds, self._schedule.late = [], 0.0

    async def _publish(self, element: int) -> None:
        while not self._stopping.is_set():
            number = self.published[element]
            started = await self._schedule.wait(element + number * self._elements)
            execution = f"execution-{element}-{number // EVENTS_OF_AN_EXECUTION}"
            try:
                await self._publisher.publish(
                    event(
                        execution,
                        f"job-{element}",
                        "create",
                        lifecycle.ACTION_START,
                        name_of(element, number),
                    )
                )
            except RetryableError as error:
                self.failures.append(str(error))
            self.seconds.append(time.monotonic() - started)
            self.published[element] += 1


def name_of(element: int, number: int) -> str:
    """Return the name of an element's event; names ascend with `number`."""
    return f"{OBJECT_NAME}.{element:04x}{number:012x}"


async def main(rate: int) -> None:
    """Publish and execute commands."""
    # aiokafka logs every failed attempt to connect.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    commands = await lines()
    async with Publisher(settings_module.load(os.environ)) as publisher:
        load = Load(publisher, rate)
        running = asyncio.create_task(load.run())
        answer()
        while command := (await commands.readline()).decode().strip():
            match command:
                case "mark":
                    answer(**_calls(load))
                    load.mark()
                case "flush":
                    await publisher.flush(FLUSH_TIMEOUT)
                    answer()
                case "stop":
                    break
        load.stop()
        await running
        left = await publisher.close()
        answer(published=load.published, failures=load.failures, left=left)


def _calls(load: Load) -> dict[str, Any]:
    """Return the figures of the calls since the last mark, in milliseconds."""
    if not load.seconds:
        return {"calls": 0}
    return {
        "calls": len(load.seconds),
        "p50": percentile(load.seconds, 50) * 1000,
        "p99": percentile(load.seconds, 99) * 1000,
        "max": max(load.seconds) * 1000,
        "late": load.late * 1000,
    }


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
