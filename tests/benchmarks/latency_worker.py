"""Worker process without a spool that publishes a course of events, each at its time.

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
"""Publishing tasks; each publishes its share one event after another."""


class Published(msgspec.Struct, frozen=True):
    """Times of the calls on the monotonic clock."""

    returned: list[float]
    """By number of the event."""
    begun: float
    """Due time of the first call."""
    late: float
    """The longest delay of a call in seconds."""

    @property
    def rate(self) -> float:
        """Events a second from the first due time to the last return."""
        return len(self.returned) / (max(self.returned) - self.begun)


async def run(course: Course) -> Published:
    """Publish the course; errors of `publish` propagate."""
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
        event(
            *(executions[execution], f"job-{number}", "create", lifecycle.ACTION_START),
            name_of(number),
        )
        for number, execution in enumerate(course.execution_numbers())
    ]


def main() -> None:
    """Publish and print the times."""
    course = msgspec.json.decode(sys.stdin.buffer.read(), type=Course)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        published = runner.run(run(course))
    print(msgspec.json.encode(published).decode())


if __name__ == "__main__":
    main()
