"""A worker without a spool that publishes a course of events, each at its time.

    python -m tests.benchmarks.latency_worker

Settings are in the environment. Reads a `Course` as JSON from standard input, and prints a
`Published` as JSON.
"""

import asyncio
import os
import sys
import time

import msgspec
import uvloop

from execution_events import settings as settings_module
from execution_events.publisher import Event, Publisher, lifecycle
from tests.benchmarks.course import Course, name_of
from tests.benchmarks.schedule import Schedule
from tests.benchmarks.workload import event

_TASKS = 400
"""That publish, each its share of the rate, one event after the other."""


class Published(msgspec.Struct, frozen=True):
    """What was published. Times are those of the monotonic clock, by number of the event."""

    returned: list[float]
    begun: float
    """When the first call was due."""
    late: float
    """The most seconds that a call began after its time."""

    @property
    def rate(self) -> float:
        """Events a second, from the first time that was due to the last return."""
        return len(self.returned) / (max(self.returned) - self.begun)


async def run(course: Course) -> Published:
    """Publish it. Raises what `publish` raises."""
    events = _events(course)
    returned = [0.0] * len(events)
    tasks = min(_TASKS, course.rate)

    async def publish(first: int) -> None:
        for number in range(first, len(events), tasks):
            await schedule.wait(number)
            await publisher.publish(events[number])
            returned[number] = time.monotonic()

    async with Publisher(settings_module.load(os.environ)) as publisher:
        schedule = Schedule(course.rate)
        async with asyncio.TaskGroup() as group:
            for first in range(tasks):
                group.create_task(publish(first))
    return Published(returned, schedule.begun, schedule.late)


def _events(course: Course) -> list[Event]:
    executions = course.executions
    return [
        event(executions[place], f"job-{number}", "create", lifecycle.ACTION_START, name_of(number))
        for number, place in enumerate(course.places())
    ]


def main() -> None:
    """Publish, and print when."""
    course = msgspec.json.decode(sys.stdin.buffer.read(), type=Course)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        published = runner.run(run(course))
    print(msgspec.json.encode(published).decode())


if __name__ == "__main__":
    main()
