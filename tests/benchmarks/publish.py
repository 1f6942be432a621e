"""How fast events are published, beside the libraries that publish bytes."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from execution_events import wire
from execution_events.cli.progress import Progress
from execution_events.publisher import EventNamer
from tests.benchmarks import workload
from tests.benchmarks.broker import PARTITIONS, Broker, broker
from tests.benchmarks.figures import Spread, Verdict, ratio, short
from tests.benchmarks.producer import BATCH_BYTES, WIDE, WINDOW, Sample
from tests.benchmarks.report import Report
from tests.benchmarks.worker import measured
from tests.support.configuration import configured
from tests.support.processes import environment

RATIO_BAR = 0.8
SPOOL_BAR = 5000
"""Durable events a second."""


@dataclass(frozen=True)
class Variant:
    """A row: `way` is the producer's. `reference` is the way that it is divided by.

    It publishes one event of `part`: those that are slow need fewer to be measured.
    """

    way: str
    title: str
    reference: str | None = None
    part: int = 1

    def share(self, events: int) -> int:
        """How many of `events` it publishes."""
        return -(-events // self.part)


VARIANTS = (
    Variant("aiokafka-wide", f"aiokafka send, {WIDE} in flight"),
    Variant("aiokafka-window", f"aiokafka send, {WINDOW} in flight"),
    Variant("aiokafka-tasks", f"aiokafka send_and_wait, {WINDOW} tasks", "aiokafka-window"),
    Variant("aiokafka-64", "aiokafka send_and_wait, 64 tasks"),
    Variant("publisher-tasks", f"Publisher, {WINDOW} tasks", "aiokafka-window"),
    Variant("publisher-64", "Publisher, 64 tasks", "aiokafka-64"),
    Variant("spool-64", "Publisher with a spool, 64 tasks", "aiokafka-64"),
    Variant("sync-8", "sync.Publisher, 8 threads", part=10),
    Variant("sync-64", "sync.Publisher, 64 threads", "aiokafka-64", part=5),
    Variant(
        "confluent-aio-window", f"confluent AIOProducer, {WINDOW} in flight", "aiokafka-window"
    ),
    Variant("confluent-aio-64", "confluent AIOProducer, 64 tasks", "aiokafka-64"),
    Variant("confluent-window", f"confluent Producer, {WINDOW} in flight", "aiokafka-window"),
    Variant("before-hand-over", "Publisher before the hand-over"),
)
_SPOOL, _LOCAL = "spool-64", "before-hand-over"

COLUMNS = ("Variant", "events/s", "min", "max", "of aiokafka", "CPU µs/event")

Samples = dict[str, list[Sample]]
"""By way, in the order of the rounds."""


async def run(events: int, rounds: int) -> Report:
    """Run every variant once a round, against a broker of its own."""
    samples: Samples = {variant.way: [] for variant in VARIANTS}
    progress = Progress(rounds * len(VARIANTS))
    async with broker() as kafka:
        for number in range(rounds):
            # Every other round backwards: what drifts does not favour one of a pair.
            for variant in VARIANTS[:: -1 if number % 2 else 1]:
                done = sum(map(len, samples.values()))
                progress.show(done, f"runs; round {number + 1}, {variant.title}")
                samples[variant.way].append(
                    await _sample(kafka, variant.way, variant.share(events))
                )
    progress.end()
    return report(samples, events, rounds)


async def _sample(kafka: Broker, way: str, events: int) -> Sample:
    settings = kafka.settings
    spool = kafka.place / "spool"
    if way == _SPOOL:
        settings = configured(settings, spool_dir=str(spool))
    before = await kafka.records()
    found = await measured(
        "-m", "tests.benchmarks.producer", way, str(events), env=environment(settings)
    )
    arrived = await kafka.records() - before
    if arrived != (0 if way == _LOCAL else events):
        raise RuntimeError(f"{way}: {arrived} records of {events} events are in the topic")
    shutil.rmtree(spool, ignore_errors=True)
    return Sample(**found)


def report(samples: Samples, events: int, rounds: int) -> Report:
    """The table of what was measured."""
    rates: dict[str, list[float]] = {}
    rows = []
    for variant in VARIANTS:
        way, share = variant.way, variant.share(events)
        rates[way] = [share / sample.durable for sample in samples[way]]
        cpu = median(sample.cpu for sample in samples[way]) / share * 1e6
        reference = rates[variant.reference] if variant.reference else None
        rows.append(_row(variant.title, rates[way], reference, cpu))
        if way == _SPOOL:
            delivered = [share / sample.delivered for sample in samples[way]]
            rows.append(_row("… until Kafka has them", delivered, reference, None))
    verdicts = [
        *(
            Verdict(
                f"{variant.title}, of {variant.reference}",
                ratio(rates[variant.way], rates[variant.reference]).median,
                RATIO_BAR,
            )
            for variant in VARIANTS
            if variant.way.startswith("publisher") and variant.reference
        ),
        Verdict("with a spool, 64 tasks", median(rates[_SPOOL]), SPOOL_BAR, "durable events/s"),
    ]
    return Report(
        "publish",
        {"events": events, "rounds": rounds, "partitions": PARTITIONS, "window": WINDOW},
        COLUMNS,
        rows,
        verdicts,
        _notes(events, rounds),
        {way: [vars(sample) for sample in found] for way, found in samples.items()},
    )


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
    namer = EventNamer()
    values = [
        len(wire.encode(namer.occurrence(event))[1])
        for event in workload.seed_shaped(workload.EVENTS_OF_AN_EXECUTION)
    ]
    return [
        f"Medians of {rounds} rounds of {events:,} events each (threads: a fifth or a tenth), every"
        " run in a process of its own;"
        f" values of {median(values):.0f} bytes, {workload.EVENTS_OF_AN_EXECUTION} events an"
        f" execution, {workload.SIDE_BY_SIDE} executions side by side, none recurs.",
        f"All: one broker, {PARTITIONS} partitions, acks=all, idempotent, zstd, batches of"
        f" {BATCH_BYTES // 1024} KiB.",
        "Both sides of a ratio have as many records in flight, of the same sizes; what is waited"
        " for is the acknowledgement of each. aiokafka and confluent-kafka get bytes made before"
        " the clock starts; the publisher names, checks and encodes as well.",
        "AIOProducer takes no headers, so it sends less; it has a task that polls, without which"
        " acknowledgements are told with the next batch, or after 100 ms.",
        "CPU: of all threads of the worker until Kafka has everything.",
    ]
