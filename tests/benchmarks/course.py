"""Events at a steady rate: the executions that they belong to and their arrival times."""

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from tests.benchmarks.recurring import Counts
from tests.benchmarks.workload import CONCURRENT, OBJECT_NAME

LISTED = 50
"""Events of a polled execution: few, so that reading and sending the list takes little time."""
POLLED_RATE, POLLED_PART = 100, 50
"""Polled events a second: all up to 100, and more only if every 50th is more than that."""
AHEAD = 0.1
"""Seconds, about, from the first poll of an execution to its first event."""
MIN_SECONDS = 2
"""Minimum length of a course."""


class Course(msgspec.Struct, frozen=True):
    """Events at `rate` a second, of which at least `samples` are polled for.

    Every `apart`th event is polled for. The polled events fill executions of `LISTED` events one
    after another; the others belong to concurrent executions.
    """

    run: str
    """Part of the execution ids, which differ between runs."""
    rate: int
    samples: int

    @property
    def apart(self) -> int:
        return max(1, self.rate // max(POLLED_RATE, self.rate // POLLED_PART))

    @property
    def ahead(self) -> int:
        """Number of polled events in `AHEAD` seconds."""
        return max(1, round(self.rate / self.apart * AHEAD))

    @property
    def events(self) -> int:
        return max(self.samples * self.apart, self.rate * MIN_SECONDS)

    @property
    def polled(self) -> list[int]:
        """The numbers of the polled events."""
        return list(range(0, self.events, self.apart))

    @property
    def polled_lists(self) -> list[int]:
        """The number of events of each polled execution, in order."""
        polled = len(self.polled)
        return [min(LISTED, polled - begin) for begin in range(0, polled, LISTED)]

    @property
    def executions(self) -> list[str]:
        """The ids of all executions, the polled ones first."""
        number = len(self.polled_lists) + (CONCURRENT if self.apart > 1 else 0)
        return [
            str(uuid.uuid5(uuid.NAMESPACE_URL, f"latency:{self.run}:{each}"))
            for each in range(number)
        ]

    def execution_numbers(self) -> list[int]:
        """Return the index in `executions` of each event's execution."""
        lists = len(self.polled_lists)
        return [
            lists + number % CONCURRENT if number % self.apart else number // self.apart // LISTED
            for number in range(self.events)
        ]

    def counts(self) -> Counts:
        """Return the counts that must be stored."""
        executions = self.executions
        return Counter(
            (executions[execution], name_of(number))
            for number, execution in enumerate(self.execution_numbers())
        )


def name_of(number: int) -> str:
    """Return the name of an event."""
    return f"{OBJECT_NAME}.{number:x}"


def number_of(name: str) -> int:
    """Return the number of the event with a name; raise `ValueError` for an unknown name."""
    prefix, _, number = name.rpartition(".")
    if prefix != OBJECT_NAME:
        raise ValueError(f"event {name} was not published")
    return int(number, 16)


@dataclass(frozen=True)
class Arrivals:
    """Seconds from the return of `publish` to the arrival, negative if it came before; errors."""

    seconds: list[float]
    wrong: list[str] = field(default_factory=list)


def arrivals(
    returned: Sequence[float], expected: Iterable[int], seen: Mapping[int, float]
) -> Arrivals:
    """Compare the events seen with those expected; `returned` and `seen` are times by number."""
    due = set(expected)
    missed, surplus = due - seen.keys(), seen.keys() - due
    return Arrivals(
        [seen[number] - returned[number] for number in sorted(due & seen.keys())],
        [
            f"{len(numbers):,} events {what}, the first is {name_of(min(numbers))}"
            for what, numbers in (("never seen", missed), ("seen but not expected", surplus))
            if numbers
        ],
    )
