"""Rate of publishing, next to libraries that send bytes."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from execution_events import wire
from execution_events.cli.progress import Progress
from execution_events.publisher.event import occurrence_of
from tests.benchmarks import trees, workload
from tests.benchmarks.broker import PARTITIONS, Broker, broker
from tests.benchmarks.figures import Spread, Verdict, ratio, short
from tests.benchmarks.producer import BATCH_BYTES, WIDE, WINDOW, Sample
from tests.benchmarks.report import Report
from tests.benchmarks.trees import THIS, Tree
from tests.benchmarks.worker import measured
from tests.support.configuration import configured
from tests.support.processes import environment

RATIO_BAR = 0.8
SPOOL_BAR = 5000
"""Durable events a second."""
TREE_BAR = 0.95
"""Ratio to the rate of the other tree's publisher."""


@dataclass(frozen=True)
class Variant:
    """A row of the table: a `way` of the producer, compared with the way `reference`.

    It publishes one of `part` events: slow ways need fewer to be measured.
    """

    way: str
    title: str
    reference: str | None = None
    part: int = 1
    ours: bool = False
    """It runs this project's code, which another tree has too."""
    other_tree: bool = False

    @property
    def key(self) -> str:
        return f"{self.way}-other-tree" if self.other_tree else self.way

    @property
    def twin(self) -> "Variant | None":
        """The same of the other tree."""
        return replace(self, title=trees.OTHER_TITLE, other_tree=True) if self.ours else None

    def share(self, events: int) -> int:
        """Return the number of events that it publishes of `events`."""
        return -(-events // self.part)


VARIANTS = (
    Variant("aiokafka-wide", f"aiokafka send, {WIDE} in flight"),
    Variant("aiokafka-window", f"aiokafka send, {WINDOW} in flight"),
    Variant("aiokafka-tasks", f"aiokafka send_and_wait, {WINDOW} tasks", "aiokafka-window"),
    Variant("aiokafka-64", "aiokafka send_and_wait, 64 tasks"),
    Variant("publisher-tasks", f"Publisher, {WINDOW} tasks", "aiokafka-window", ours=True),
    Variant("publisher-64", "Publisher, 64 tasks", "aiokafka-64", ours=True),
    Variant("spool-64", "Publisher with a spool, 64 tasks", "aiokafka-64", ours=True),
    Variant("sync-8", "sync.Publisher, 8 threads", part=10, ours=True),
    Variant("sync-64", "sync.Publisher, 64 threads", "aiokafka-64", part=5, ours=True),
    Variant(
        "confluent-aio-window", f"confluent AIOProducer, {WINDOW} in flight", "aiokafka-window"
    ),
    Variant("confluent-aio-64", "confluent AIOProducer, 64 tasks", "aiokafka-64"),
    Variant("confluent-window", f"confluent Producer, {WINDOW} in flight", "aiokafka-window"),
    Variant("before-hand-over", "Publisher before the hand-over", ours=True),
)
_SPOOL, _LOCAL = "spool-64", "before-hand-over"

COLUMNS = ("Variant", "events/s", "min", "max", "of aiokafka", "CPU µs/event")

Samples = dict[str, list[Sample]]
"""By key of the variant, in the order of the rounds."""


def variants(tree: Tree | None) -> list[Variant]:
    """Return the variants of a run: with another tree, ours and its own in turn."""
    return trees.paired(VARIANTS, lambda each: each.twin if tree else None)


async def run(events: int, rounds: int, tree: Tree | None = None) -> Report:
    """Run every variant once a round against one broker; with `tree`, its publishers too."""
    turns = variants(tree)
    samples: Samples = {variant.key: [] for variant in turns}
    progress = Progress(rounds * len(turns))
    async with broker() as kafka:
        for number in range(rounds):
            for variant in trees.in_turn(turns, number):
                done = sum(map(len, samples.values()))
                progress.show(done, f"runs; round {number + 1}, {variant.key}")
                samples[variant.key].append(
                    await _sample(
                        kafka,
                        variant.way,
                        variant.share(events),
                        tree if tree and variant.other_tree else THIS,
                    )
                )
    progress.end()
    return report(turns, samples, events, rounds)


async def _sample(kafka: Broker, way: str, events: int, tree: Tree) -> Sample:
    settings = kafka.settings
    spool = kafka.directory / "spool"
    if way == _SPOOL:
        settings = configured(settings, spool_dir=str(spool))
    before = await kafka.records()
    found = await measured(
        *("-m", "tests.benchmarks.producer", way, str(events)),
        env=environment(settings),
        tree=tree,
    )
    arrived = await kafka.records() - before
    if arrived != (0 if way == _LOCAL else events):
        raise RuntimeError(f"{way}: {arrived} records of {events} events are in the topic")
    shutil.rmtree(spool, ignore_errors=True)
    return Sample(**found)


def report(turns: Sequence[Variant], samples: Samples, events: int, rounds: int) -> Report:
    """Return the table of the samples."""
    rates: dict[str, list[float]] = {}
    rows = []
    for variant in turns:
        key, share = variant.key, variant.share(events)
        rates[key] = [share / sample.durable for sample in samples[key]]
        cpu = median(sample.cpu for sample in samples[key]) / share * 1e6
        reference = rates[variant.reference] if variant.reference else None
        rows.append(_row(variant.title, rates[key], reference, cpu))
        if variant.way == _SPOOL:
            delivered = [share / sample.delivered for sample in samples[key]]
            rows.append(_row("… until Kafka has them", delivered, reference, None))
    return Report(
        "publish",
        {"events": events, "rounds": rounds, "partitions": PARTITIONS, "window": WINDOW},
        COLUMNS,
        rows,
        list(_verdicts(turns, rates)),
        _notes(events, rounds),
        {key: [vars(sample) for sample in found] for key, found in samples.items()},
    )


def _verdicts(turns: Sequence[Variant], rates: dict[str, list[float]]) -> Iterator[Verdict]:
    for variant in VARIANTS:
        if variant.way.startswith("publisher") and variant.reference:
            yield Verdict(
                f"{variant.title}, of {variant.reference}",
                ratio(rates[variant.way], rates[variant.reference]).median,
                RATIO_BAR,
            )
    yield Verdict("with a spool, 64 tasks", median(rates[_SPOOL]), SPOOL_BAR, "durable events/s")
    for variant in VARIANTS:
        twin = variant.twin
        if twin is not None and twin in turns:
            yield trees.verdict(variant.title, rates[variant.key], rates[twin.key], TREE_BAR)


def _row(
    title: str, rates: Sequence[float], references: Sequence[float] | None, cpu: float | None
) -> tuple[str, ...]:
    spread = Spread.of(rates)
    return (
        title,
        short(round(spread.median)),
        short(round(spread.least)),
        short(round(spread.greatest)),
        "" if references is None else f"{ratio(rates, references).median:.2f}",
        "" if cpu is None else f"{cpu:.1f}",
    )


def _notes(events: int, rounds: int) -> list[str]:
    values = [
        len(wire.encode(occurrence_of(event))[1])
        for event in workload.seed_shaped(workload.EVENTS_OF_AN_EXECUTION)
    ]
    return [
        f"Medians of {rounds} rounds of {events:,} events each (threads: a fifth or a tenth); each"
        f" run is a process of its own. Values have {median(values):.0f} bytes; an execution has"
        f" {workload.EVENTS_OF_AN_EXECUTION} events, {workload.CONCURRENT} executions run"
        " concurrently, and no event recurs.",
        f"All variants: one broker, {PARTITIONS} partitions, acks=all, idempotent, zstd, batches of"
        f" {BATCH_BYTES // 1024} KiB.",
        "Both sides of a ratio have the same number of records in flight, of the same sizes, and"
        " wait for the acknowledgement of each. aiokafka and confluent-kafka send bytes encoded"
        " before the clock starts; the publisher also names, checks and encodes.",
        "AIOProducer does not support headers, so it sends less. A task polls it; without one,"
        " acknowledgements arrive with the next batch or after 100 ms.",
        "CPU: all threads of the worker until Kafka has every record.",
    ]
