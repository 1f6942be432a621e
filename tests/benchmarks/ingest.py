"""Rate at which consumers store a topic, next to PostgreSQL alone fed with folded records."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import median

from execution_events.cli.progress import Progress
from execution_events.events import Occurrence
from execution_events.settings import Settings
from tests.benchmarks import consuming, recurring, trees, upsert
from tests.benchmarks.broker import PARTITIONS, broker
from tests.benchmarks.consuming import Sample
from tests.benchmarks.figures import Spread, Verdict, ratio, short
from tests.benchmarks.recurring import Counts
from tests.benchmarks.report import Report
from tests.benchmarks.servers import Postgres, postgres
from tests.benchmarks.trees import THIS, Tree
from tests.benchmarks.worker import measured
from tests.benchmarks.workload import EVENTS_OF_AN_ELEMENT
from tests.support import databases
from tests.support.configuration import configured
from tests.support.consumers import end_offsets
from tests.support.databases import Database, administrator
from tests.support.processes import environment

ONE_BAR, TWO_BAR = 0.6, 0.7
"""Ratio to the reference's rate."""
MEMORY_BAR = 200
"""MiB of a consumer, at most."""
TREE_BAR = 0.85
"""Ratio to the rate of the other tree's consumer."""
ELEMENTS_BAR = 0.7
"""Ratio of the rate with one execution to that with as many elements in many executions."""
_EXECUTIONS = 1000
"""Crash loops, and executions over which elements are spread."""

COLUMNS = (
    *("Stored by", "records/s", "min", "max", "of PostgreSQL alone", "total seconds"),
    *("CPU µs/record", "PostgreSQL µs/record", "peak MiB"),
)


Work = Callable[[int], Iterator[Occurrence]]
"""A function that yields so many records, the same in each call."""


def _loops(number: int) -> Iterator[Occurrence]:
    return islice(recurring.loops(_EXECUTIONS, number // _EXECUTIONS + 1), number)


def _wide(number: int) -> Iterator[Occurrence]:
    return recurring.elements(1, number)


def _spread(number: int) -> Iterator[Occurrence]:
    return recurring.elements(_EXECUTIONS, number)


@dataclass(frozen=True)
class Variant:
    """A row of the table: consumers of this tree or of another, or none."""

    key: str
    title: str
    consumers: int
    other_tree: bool = False
    work: Work = recurring.records
    partitions: int = PARTITIONS


ALONE = Variant("postgresql", "PostgreSQL alone: COPY and upsert", 0)
ONE = Variant("one", "one consumer", 1)
TWO = Variant("two", "two consumers", 2)
OTHER = Variant("other", "one consumer of the other tree", 1, other_tree=True)
LOOPS = Variant("loops", f"{_EXECUTIONS:,} crash loops", 1, work=_loops)
OTHER_LOOPS = Variant("other-loops", trees.OTHER_TITLE, 1, other_tree=True, work=_loops)
WIDE = Variant(
    *("wide", f"{recurring.ELEMENTS:,} elements, one execution", 1), work=_wide, partitions=1
)
SPREAD = Variant(
    *("spread", f"the same elements, {_EXECUTIONS:,} executions", 1), work=_spread, partitions=1
)
_TWINS = {ONE: OTHER, LOOPS: OTHER_LOOPS}

Samples = dict[str, list[Sample]]
"""By variant, in the order of the rounds."""


async def run(records: int, rounds: int, tree: Tree | None = None) -> Report:
    """Store a topic once a round with each variant, each time in a database of its own."""
    variants = trees.paired(
        (ALONE, ONE, TWO, LOOPS, WIDE, SPREAD), lambda each: _TWINS.get(each) if tree else None
    )
    samples: Samples = {variant.key: [] for variant in variants}
    progress = Progress(rounds * len(variants))
    topics: dict[Work, tuple[Settings, Counts]] = {}
    async with postgres() as server, broker() as kafka:
        progress.show(0, "runs; producing records")
        for work, partitions in dict.fromkeys((each.work, each.partitions) for each in variants):
            settings = await kafka.topic(partitions)
            recurring.produce(settings, list(work(records)))
            ends = await end_offsets(settings)
            if sum(ends.values()) != records:
                raise RuntimeError(f"{sum(ends.values())} of {records} records are in the topic")
            topics[work] = settings, recurring.counts(work(records))
        for number in range(rounds):
            for variant in trees.in_turn(variants, number):
                done = sum(map(len, samples.values()))
                progress.show(done, f"runs; round {number + 1}, {variant.title}")
                samples[variant.key].append(
                    await _sample(
                        *(server, variant, *topics[variant.work]),
                        tree if tree and variant.other_tree else THIS,
                    )
                )
    progress.end()
    _, expected = topics[recurring.records]
    return report(variants, samples, expected, rounds)


async def _sample(
    server: Postgres, variant: Variant, settings: Settings, expected: Counts, tree: Tree
) -> Sample:
    async with databases.empty(server.administrator_url) as database:
        if variant.consumers:
            await consuming.migrate(database, tree)
        async with administrator(server.administrator_url) as connection:
            # Otherwise this run would pay for writes that the last one left.
            await connection.execute("CHECKPOINT")
        if not variant.consumers:
            return await _alone(server, database, expected.total())
        return await consuming.store(server, settings, database, expected, variant.consumers, tree)


async def _alone(server: Postgres, database: Database, records: int) -> Sample:
    found = upsert.Sample(
        **await measured(
            *("-m", "tests.benchmarks.upsert", str(records), str(server.pid)),
            env=environment(configured(database_url=database.owner)),
        )
    )
    return Sample(
        rate=records / found.seconds,
        total=found.seconds,
        cpu=found.cpu,
        postgres_cpu=found.postgres_cpu,
        peak=0,
        wrong=found.wrong,
    )


def report(variants: Sequence[Variant], samples: Samples, expected: Counts, rounds: int) -> Report:
    """Return the table of the samples."""
    records = expected.total()
    rates = {key: [sample.rate for sample in found] for key, found in samples.items()}
    peak = max(sample.peak for key in (ONE.key, TWO.key) for sample in samples[key])
    verdicts = [
        Verdict("one consumer, of PostgreSQL alone", _ratio(rates, ONE, ALONE), ONE_BAR),
        Verdict("two consumers, of PostgreSQL alone", _ratio(rates, TWO, ALONE), TWO_BAR),
        Verdict("memory of a consumer", peak, MEMORY_BAR, "MiB", at_most=True),
    ]
    if OTHER in variants:
        verdicts.append(trees.verdict(ONE.title, rates[ONE.key], rates[OTHER.key], TREE_BAR))
    if OTHER_LOOPS in variants:
        loops = rates[LOOPS.key], rates[OTHER_LOOPS.key]
        verdicts.append(trees.verdict(LOOPS.title, *loops, TREE_BAR))
    if WIDE in variants:
        verdicts.append(
            Verdict(f"{WIDE.title}, of {SPREAD.title}", _ratio(rates, WIDE, SPREAD), ELEMENTS_BAR)
        )
    return Report(
        "ingest",
        {"records": records, "rounds": rounds, "partitions": PARTITIONS},
        COLUMNS,
        [_row(variant, samples[variant.key], rates, records) for variant in variants],
        verdicts,
        _notes(expected, rounds),
        {key: [asdict(sample) for sample in found] for key, found in samples.items()},
        [
            f"{variant.title}: {wrong}"
            for variant in variants
            for sample in samples[variant.key]
            for wrong in sample.wrong
        ],
    )


def _ratio(rates: dict[str, list[float]], variant: Variant, reference: Variant) -> float:
    return ratio(rates[variant.key], rates[reference.key]).median


def _row(
    variant: Variant, found: Sequence[Sample], rates: dict[str, list[float]], records: int
) -> tuple[str, ...]:
    spread = Spread.of(rates[variant.key])
    peak = max(sample.peak for sample in found)
    return (
        variant.title,
        short(round(spread.median)),
        short(round(spread.least)),
        short(round(spread.greatest)),
        f"{_ratio(rates, variant, ALONE):.2f}" if variant.work is ALONE.work else "",
        short(round(median(sample.total for sample in found), 1)),
        f"{median(sample.cpu for sample in found) / records * 1e6:.1f}",
        f"{median(sample.postgres_cpu for sample in found) / records * 1e6:.1f}",
        f"{peak:.0f}" if peak else "",
    )


def _notes(expected: Counts, rounds: int) -> list[str]:
    records, events = expected.total(), len(expected)
    executions = len({execution_id for execution_id, _ in expected})
    return [
        f"Medians of {rounds} rounds. Each run stores the same {records:,} records of {events:,}"
        f" events in {executions:,} executions, {1 - events / records:.0%} of them"
        f" recurrences, from {PARTITIONS} partitions and {recurring.WORKERS} sources, in a"
        " database of its own after a checkpoint.",
        f"The other works have as many records: {_EXECUTIONS:,} crash loops of one event each; and"
        f" {recurring.ELEMENTS:,} elements with {EVENTS_OF_AN_ELEMENT} events each, which recur"
        f" after the last, in one execution or in {_EXECUTIONS:,}, in one partition both times: in"
        " more of them a batch would hold more recurrences of fewer events.",
        "PostgreSQL with default durability (fsync, synchronous_commit), the broker and the"
        " consumers share the cores; only the consumers' runs pay for the broker's fetches.",
        f"PostgreSQL alone: batches of {upsert.BATCH:,} records, folded and encoded before the"
        " clock starts, go through COPY into a temporary table and one upsert into 14 columns with"
        " their primary key, over one connection, without offsets, watermarks or executions.",
        "A consumer's clock runs from the first stored offset to the last and leaves out its"
        " start. `total seconds` includes it, with the 3 s that Kafka waits for members of a new"
        " group. Two consumers start together. CPU includes the start; the peak is one process's.",
        "Every count is compared with the generator's, event by event.",
    ]
