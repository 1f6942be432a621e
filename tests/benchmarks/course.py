"""Events at a steady rate: which belongs to which execution, and how soon each was seen."""

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from execution_events.events import event_name
from tests.benchmarks.recurring import Counts
from tests.benchmarks.workload import OBJECT_NAME, SIDE_BY_SIDE

LISTED = 50
"""Events of an execution that is polled; short, so that the list is read and sent in no time."""
POLLED_RATE, POLLED_PART = 100, 50
"""Events a second that are polled for: all up to that rate, and every 50th where that is more."""
AHEAD = 0.1
"""Seconds before its first event that an execution begins to be polled, about."""
LEAST = 2
"""Seconds that a course takes at least."""


class Course(msgspec.Struct, frozen=True):
    """At least `samples` events that are polled for, among all at `rate` a second.

    Every `apart`th event is polled for. These make up executions of `LISTED` events, one execution
    after the other; the others belong to executions side by side.
    """

    run: str
    """Makes its executions unlike those of others."""
    rate: int
    samples: int

    @property
    def apart(self) -> int:
        return max(1, self.rate // max(POLLED_RATE, self.rate // POLLED_PART))

    @property
    def ahead(self) -> int:
        """Events that are polled for in `AHEAD` seconds."""
        return max(1, round(self.rate / self.apart * AHEAD))

    @property
    def events(self) -> int:
        return max(self.samples * self.apart, self.rate * LEAST)

    @property
    def polled(self) -> list[int]:
        """The numbers of the events that are polled for."""
        return list(range(0, self.events, self.apart))

    @property
    def polled_lists(self) -> list[int]:
        """How many events each execution has that is polled, in their order."""
        polled = len(self.polled)
        return [min(LISTED, polled - begin) for begin in range(0, polled, LISTED)]

    @property
    def executions(self) -> list[str]:
        """The ids of all executions, the polled ones first."""
        number = len(self.polled_lists) + (SIDE_BY_SIDE if self.apart > 1 else 0)
        return [
            str(uuid.uuid5(uuid.NAMESPACE_URL, f"latency:{self.run}:{each}"))
            for each in range(number)
        ]

    def places(self) -> list[int]:
        """The place in `executions` of each event's."""
        lists = len(self.polled_lists)
        return [
            lists + number % SIDE_BY_SIDE if number % self.apart else number // self.apart // LISTED
            for number in range(self.events)
        ]

    def counts(self) -> Counts:
        """What must be stored."""
        executions = self.executions
        return Counter(
            (executions[place], name_of(number)) for number, place in enumerate(self.places())
        )


def name_of(number: int) -> str:
    """The name of an event."""
    return event_name(OBJECT_NAME, number)


def number_of(name: str) -> int:
    """The event of a name. Raises `ValueError` for one that `name_of` did not give."""
    prefix, _, number = name.rpartition(".")
    if prefix != OBJECT_NAME:
        raise ValueError(f"an event that nobody published: {name!r}")
    return int(number, 16)


@dataclass(frozen=True)
class Arrivals:
    """Seconds from the return of `publish` until the event was seen, below 0 where that was
    earlier; and what was wrong.
    """

    seconds: list[float]
    wrong: list[str] = field(default_factory=list)


def arrivals(
    returned: Sequence[float], expected: Iterable[int], seen: Mapping[int, float]
) -> Arrivals:
    """Compare what was seen with what must be; `returned` is by number, `seen` too."""
    due = set(expected)
    missed, surplus = due - seen.keys(), seen.keys() - due
    return Arrivals(
        [seen[number] - returned[number] for number in sorted(due & seen.keys())],
        [
            f"{len(numbers):,} events {what}, the first is {name_of(min(numbers))}"
            for what, numbers in (("never seen", missed), ("seen that nobody published", surplus))
            if numbers
        ],
    )
