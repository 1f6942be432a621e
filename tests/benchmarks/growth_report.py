"""Work and report of the growth benchmark. Pure functions."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple, Protocol

from msgspec import to_builtins as builtins

from execution_events.events import Occurrence
from tests.benchmarks import consuming, load, recurring
from tests.benchmarks.broker import PARTITIONS
from tests.benchmarks.figures import Spread, Verdict, ratio, short
from tests.benchmarks.report import Report
from tests.benchmarks.workload import EVENTS_OF_AN_EXECUTION

SIZE_BAR = 0.8
"""Ratio to the rate with the smallest size stored."""
LOOP_BAR = 1
"""Ratio to the rate of mixed work."""
SERVER = {"shared_buffers": "2GB", "max_wal_size": "4GB"}
"""Settings of PostgreSQL: its defaults are too small for the largest size."""
LISTS = 2000
"""Limit of executions whose lists are read."""
READ_CONNECTIONS = 8

COLUMNS = (
    *("Work", "a second", "min", "max", "of the first"),
    *("p50 ms", "p99 ms", "CPU µs", "PostgreSQL µs"),
)


class Work(Protocol):
    """The content of a topic."""

    def records(self) -> Iterator[Occurrence]:
        """Yield the records, the same in each call."""


@dataclass(frozen=True)
class Mixed:
    """Records of concurrent executions, some of them recurrences; each `run` has its own."""

    number: int
    run: str = ""

    def records(self) -> Iterator[Occurrence]:
        return recurring.records(self.number, self.run)


@dataclass(frozen=True)
class Loops:
    """Concurrent crash loops of `number` occurrences each."""

    executions: int
    number: int

    def records(self) -> Iterator[Occurrence]:
        return recurring.loops(self.executions, self.number)


class Variant(NamedTuple):
    """A row of the table that begins with an empty database."""

    key: str
    title: str
    consumers: int = 1
    loops: int = 0


ONE = Variant("one", "one consumer, empty database")
TWO = Variant("two", "two consumers", consumers=2)
THREE = Variant("three", "three consumers", consumers=3)
LOOPS = (
    Variant("loop-1", "one consumer, crash loop of one event", loops=1),
    Variant("loop-8", "one consumer, crash loops of 8 events", loops=8),
)
VARIANTS = (ONE, TWO, THREE, *LOOPS)


@dataclass(frozen=True)
class Found:
    """Samples in the order of the rounds, by stored events or by variant."""

    reads: dict[int, list[load.Sample]] = field(default_factory=dict)
    grown: dict[int, list[consuming.Sample]] = field(default_factory=dict)
    bare: dict[str, list[consuming.Sample]] = field(default_factory=dict)


class _Group(NamedTuple):
    """A row: its title, its rates, and the figures of one operation."""

    title: str
    rates: list[float]
    more: tuple[str, str, str, str]


def report(
    found: Found, sizes: Sequence[int], events: int, loop: int, rounds: int, seconds: float
) -> Report:
    """Return the table of the samples; `sizes` are the numbers of events stored before."""
    records = {ONE.key: events, TWO.key: events, THREE.key: events} | {
        each.key: each.loops * loop for each in LOOPS
    }
    grown = [
        _stored(f"one consumer, {size:,} events stored", found.grown[size], events)
        for size in sizes
    ]
    bare = [_stored(each.title, found.bare[each.key], records[each.key]) for each in VARIANTS]
    reads = [_read(f"lists, {size:,} events stored", found.reads[size]) for size in sizes]
    return Report(
        "growth",
        {
            "events": events,
            "sizes": list(sizes),
            "loop": loop,
            "rounds": rounds,
            "seconds": seconds,
            "partitions": PARTITIONS,
        },
        COLUMNS,
        [_row(each, group[0]) for group in (grown, bare, reads) for each in group],
        [
            *(
                Verdict(
                    f"{what} with {sizes[-1]:,} events stored, of the rate with {sizes[0]:,}",
                    ratio(group[-1].rates, group[0].rates).median,
                    SIZE_BAR,
                )
                for what, group in (("one consumer", grown), ("lists", reads))
            ),
            Verdict(
                "a crash loop of one event, of mixed work",
                ratio(bare[VARIANTS.index(LOOPS[0])].rates, bare[0].rates).median,
                LOOP_BAR,
            ),
        ],
        _notes(events, loop, rounds, seconds),
        _figures(found),
        _broken(found),
    )


def _stored(title: str, samples: Sequence[consuming.Sample], records: int) -> _Group:
    cpu, postgres = (
        f"{median(used) / records * 1e6:.1f}"
        for used in (
            [sample.cpu for sample in samples],
            [sample.postgres_cpu for sample in samples],
        )
    )
    return _Group(title, [sample.rate for sample in samples], ("", "", cpu, postgres))


def _read(title: str, samples: Sequence[load.Sample]) -> _Group:
    times = (
        short(round(median(each) * 1000, 2))
        for each in ([sample.p50 for sample in samples], [sample.p99 for sample in samples])
    )
    cpu = (
        f"{median(each):.0f}"
        for each in (
            [sample.server_cpu / max(1, sample.answers) * 1e6 for sample in samples],
            [sample.postgres_cpu / max(1, sample.answers) * 1e6 for sample in samples],
        )
    )
    p50, p99, server, postgres = (*times, *cpu)
    return _Group(title, [sample.rate for sample in samples], (p50, p99, server, postgres))


def _row(each: _Group, first: _Group) -> tuple[str, ...]:
    spread = Spread.of(each.rates)
    rates = (short(round(rate)) for rate in (spread.median, spread.least, spread.greatest))
    return (each.title, *rates, f"{ratio(each.rates, first.rates).median:.2f}", *each.more)


def _figures(found: Found) -> dict[str, Any]:
    return {
        "reads": {str(size): builtins(samples) for size, samples in found.reads.items()},
        **{
            what: {str(key): [asdict(each) for each in samples] for key, samples in of.items()}
            for what, of in (("grown", found.grown), ("bare", found.bare))
        },
    }


def _broken(found: Found) -> list[str]:
    stored = [(f"{size:,} events stored", samples) for size, samples in found.grown.items()]
    bare = [(each.title, found.bare.get(each.key, [])) for each in VARIANTS]
    return [
        *(
            f"{title}: {wrong}"
            for title, samples in [*stored, *bare]
            for sample in samples
            for wrong in sample.wrong
        ),
        *(
            f"lists, {size:,} events stored: {sample.failure}"
            for size, samples in found.reads.items()
            for sample in samples
            if sample.wrong
        ),
    ]


def _notes(events: int, loop: int, rounds: int, seconds: float) -> list[str]:
    server = ", ".join(" ".join(setting) for setting in SERVER.items())
    return [
        f"Medians of {rounds} rounds. Work is {events:,} records of concurrent executions,"
        f" {recurring.RECURRENCES:.0%} of them recurrences, or crash loops of {loop:,} occurrences"
        f" of one event each, from {PARTITIONS} partitions and {recurring.WORKERS} sources.",
        f"PostgreSQL with default durability ({server}), the broker, which also holds the work of"
        " the other rows, and the consumers share the cores. Each run begins after a checkpoint;"
        " the clock runs from the first stored offset to the last.",
        f"The stored events are executions of {EVENTS_OF_AN_EXECUTION} events, written through the"
        " consumer's functions, vacuumed and analyzed. Each round adds its own executions, the"
        " same to each size. The rows without a size begin with an empty database.",
        f"Lists are those of up to {LISTS:,} executions in random order, {seconds} s a run over"
        f" {READ_CONNECTIONS} connections. Each run has its own reader and continues where the"
        " last one ended. All reads precede the first addition, and none is answered from the"
        " reader's memory.",
        "All counts of each run are compared with the generator's, event by event, and the totals"
        " of rows and occurrences with the whole table. The status, length and beginning of every"
        " list, and the whole first list of each run, are compared with the expected ones.",
    ]
