"""How fast the reader answers, beside a fixed body and beside the plainest way to read a list."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

from msgspec import to_builtins as builtins

from execution_events.cli.progress import Progress
from tests.benchmarks import dataset as dataset_module
from tests.benchmarks import servers, usage
from tests.benchmarks.asks import DEPTH, HOT, PAGE, Workload, workload
from tests.benchmarks.contention import Contention, contend
from tests.benchmarks.dataset import TABLE, Dataset
from tests.benchmarks.figures import Spread, Verdict, ratio, short
from tests.benchmarks.load import Ask, Sample, measure
from tests.benchmarks.reading import Streamed, plan, stream
from tests.benchmarks.report import Report
from tests.benchmarks.servers import Postgres, Serving
from tests.benchmarks.workload import EVENTS_OF_AN_EXECUTION
from tests.support.databases import Database

UNCACHED_BAR, HOT_BAR, UNCHANGED_BAR = 2.3, 0.5, 1
"""Of the naive server at few connections, of the static one at many, of hot lists at both."""
DEEP_BAR, LONG_BAR = 1.2, 2
"""Times the time of the long execution's first page, of a short execution's first page."""
GROWTH_BAR = 20
"""MiB that a reader grows while it streams the long list."""
FEW, MANY = 8, 64
"""Connections."""
SLOWLY = 10
"""Seconds that a slow client takes for the long list, where a run is not shorter than one."""

COLUMNS = (
    *("Answers", "connections", "answers/s", "min", "max", "of naive", "of static"),
    *("p50 ms", "p99 ms", "server µs", "PostgreSQL µs"),
)


@dataclass(frozen=True)
class Case:
    """A row of the table: what is asked of which server. `asks` is a field of `Workload`."""

    key: str
    title: str
    server: str
    asks: str


STATIC = Case("static", "static: a fixed body", "static", "static")
NAIVE = Case("naive", "naive: 14 columns, dicts, JSON", "naive", "lists")
UNCACHED = Case("uncached", "lists, each another execution's", "reader", "lists")
HOT_LISTS = Case("hot", f"lists of {HOT} executions again and again", "reader", "hot")
UNCHANGED = Case("unchanged", "304 of the same", "reader", "unchanged")
GZIP = Case("gzip", "the same lists, gzip", "reader", "gzip")
ZSTD = Case("zstd", "the same lists, zstd", "reader", "zstd")
PAGES = Case("pages", f"first {PAGE} events, each another execution's", "reader", "pages")
SHORT = Case("first-short", f"first {PAGE} events of one short execution", "reader", "first_short")
LONG = Case("first-long", f"first {PAGE} events of the long execution", "reader", "first_long")
DEEP = Case("deep", f"{PAGE} events of the long execution, at {DEPTH:.0%} of it", "reader", "deep")
ALL_DEEP = Case("all-deep", "the same, each time the next page", "reader", "all_deep")
CASES = (
    *(STATIC, NAIVE, UNCACHED, HOT_LISTS, UNCHANGED, GZIP, ZSTD),
    *(PAGES, SHORT, LONG, DEEP, ALL_DEEP),
)

Samples = dict[str, dict[int, list[Sample]]]
"""By case and connections, in the order of the rounds."""


@dataclass(frozen=True)
class Memory:
    """MiB of the reader once all rounds are over, and the most until then."""

    after: float
    peak: float
    streams: dict[str, Streamed] = field(default_factory=dict)
    """By way of reading the long list."""


async def run(dataset: Dataset, seconds: float, rounds: int) -> Report:
    """Ask every server in turn, in each round; then read beside a consumer, and stream."""
    progress = Progress(dataset.events)
    async with servers.postgres() as server, server.database() as database:
        async for stored in dataset_module.store(dataset, database):
            progress.show(stored, "events stored")
        async with servers.reader(
            server, database, reader_max_requests_per_token=2 * MANY
        ) as reader:
            progress.show(dataset.events, "events stored; bodies are made")
            asks = await workload(reader.address, dataset)
            async with _references(server, database, asks) as references:
                samples = await _rounds(
                    server, {**references, "reader": reader}, asks, seconds, rounds
                )
            memory = Memory(usage.memory(reader.pid), usage.memory(reader.pid, "VmHWM"))
            progress = Progress()
            progress.show(0, "s: reads beside a consumer")
            contention = await contend(
                server, database, plan(server, reader, asks.lists, FEW, seconds)
            )
        for way, pace in (("at once", None), ("slowly", SLOWLY * min(1, seconds))):
            progress.show(0, f"s: reads the long list {way}")
            memory.streams[way] = await stream(server, database, asks, pace)
    progress.end()
    return report(dataset, samples, memory, contention, rounds, seconds)


@asynccontextmanager
async def _references(
    server: Postgres, database: Database, asks: Workload
) -> AsyncIterator[dict[str, Serving]]:
    body = server.log("body")
    body.write_bytes(asks.seed)
    async with AsyncExitStack() as stack:
        yield {
            way: await stack.enter_async_context(
                servers.module(
                    *("reference", way, argument),
                    log=server.log(way),
                    database_url=database.owner,
                )
            )
            for way, argument in (("static", str(body)), ("naive", TABLE))
        }


async def _rounds(
    server: Postgres,
    servings: Mapping[str, Serving],
    asks: Workload,
    seconds: float,
    rounds: int,
) -> Samples:
    samples: Samples = {case.key: {FEW: [], MANY: []} for case in CASES}
    turns = [(case, connections) for case in CASES for connections in (FEW, MANY)]
    progress = Progress(rounds * len(turns))
    # Where each case goes on: in its next run it asks for what it has asked for the longest ago.
    asked: Counter[str] = Counter()
    for number in range(rounds):
        # Every other round backwards: what drifts does not favour one of a pair.
        for place, (case, connections) in enumerate(turns[:: -1 if number % 2 else 1]):
            progress.show(
                number * len(turns) + place,
                f"runs; round {number + 1}, {case.title}, {connections} connections",
            )
            line: list[Ask] = getattr(asks, case.asks)
            sample = await measure(
                plan(
                    server,
                    servings[case.server],
                    line,
                    connections,
                    seconds,
                    asked[case.key] % len(line),
                )
            )
            asked[case.key] += sample.asked
            samples[case.key][connections].append(sample)
    progress.end()
    return samples


def report(
    dataset: Dataset,
    samples: Samples,
    memory: Memory,
    contention: Contention,
    rounds: int,
    seconds: float,
) -> Report:
    """The table of what was measured."""
    beside = contention.sample
    return Report(
        "read",
        {
            "executions": dataset.executions,
            "events": EVENTS_OF_AN_EXECUTION,
            "long": dataset.long,
            "rounds": rounds,
            "seconds": seconds,
        },
        COLUMNS,
        [
            *(
                _row(case, connections, samples)
                for case in CASES
                for connections in samples[case.key]
            ),
            (
                *("lists beside a consumer", str(FEW), short(round(beside.rate)), "", "", "", ""),
                *_times([beside]),
            ),
        ],
        _verdicts(samples, memory, contention),
        _notes(dataset, memory, contention, rounds, seconds),
        {
            "samples": {
                key: {str(connections): builtins(found) for connections, found in each.items()}
                for key, each in samples.items()
            },
            "memory": builtins(memory),
            "contention": builtins(contention),
        },
        _broken(samples, memory, contention),
    )


def _rates(samples: Samples, case: Case, connections: int) -> list[float]:
    return [sample.rate for sample in samples[case.key][connections]]


def _of(samples: Samples, case: Case, reference: Case, connections: int) -> float:
    return ratio(_rates(samples, case, connections), _rates(samples, reference, connections)).median


def _row(case: Case, connections: int, samples: Samples) -> tuple[str, ...]:
    found = samples[case.key][connections]
    spread = Spread.of(_rates(samples, case, connections))
    return (
        case.title,
        str(connections),
        *(short(round(each)) for each in (spread.median, spread.least, spread.greatest)),
        *(f"{_of(samples, case, reference, connections):.2f}" for reference in (NAIVE, STATIC)),
        *_times(found),
    )


def _times(found: Sequence[Sample]) -> tuple[str, ...]:
    return (
        short(round(median(sample.p50 for sample in found) * 1000, 2)),
        short(round(median(sample.p99 for sample in found) * 1000, 2)),
        *(
            f"{median(cpu / max(1, sample.answers) for cpu, sample in each) * 1e6:.0f}"
            for each in (
                [(sample.server_cpu, sample) for sample in found],
                [(sample.postgres_cpu, sample) for sample in found],
            )
        ),
    )


def _verdicts(samples: Samples, memory: Memory, contention: Contention) -> list[Verdict]:
    return [
        Verdict(
            f"uncached lists, of naive, {FEW} connections",
            _of(samples, UNCACHED, NAIVE, FEW),
            UNCACHED_BAR,
        ),
        Verdict(
            f"hot lists, of static, {MANY} connections",
            _of(samples, HOT_LISTS, STATIC, MANY),
            HOT_BAR,
        ),
        *(
            Verdict(
                f"304, of hot lists, {connections} connections",
                _of(samples, UNCHANGED, HOT_LISTS, connections),
                UNCHANGED_BAR,
            )
            for connections in (FEW, MANY)
        ),
        Verdict(
            f"time of a page at depth {DEPTH:.0%}, of the first page's",
            _of(samples, LONG, DEEP, FEW),
            DEEP_BAR,
            at_most=True,
        ),
        Verdict(
            "time of the long execution's first page, of a short one's",
            _of(samples, SHORT, LONG, FEW),
            LONG_BAR,
            at_most=True,
        ),
        *(
            Verdict(f"growth, long list read {way}", streamed.grown, GROWTH_BAR, "MiB", True)
            for way, streamed in memory.streams.items()
        ),
        Verdict("errors beside a consumer", contention.sample.wrong, 0, at_most=True),
    ]


def _broken(samples: Samples, memory: Memory, contention: Contention) -> list[str]:
    every = [
        (case.title, sample)
        for case in CASES
        for found in samples[case.key].values()
        for sample in found
    ]
    return [
        *(
            f"{title}: {sample.wrong:,} of {sample.asked:,} answers wrong, {sample.errors}"
            for title, sample in [*every, ("beside a consumer", contention.sample)]
            if sample.wrong
        ),
        *(
            f"the long list, read {way}, is another one"
            for way, streamed in memory.streams.items()
            if not streamed.same
        ),
    ]


def _notes(
    dataset: Dataset, memory: Memory, contention: Contention, rounds: int, seconds: float
) -> list[str]:
    streams = "; ".join(
        f"{way} in {each.seconds:.1f} s, from {each.before:.0f} MiB by {each.grown:.1f}"
        for way, each in memory.streams.items()
    )
    return [
        f"Medians of {rounds} rounds of {seconds} s each, in turn. PostgreSQL, the server and its"
        " client, a process each, share the cores; so does nothing else.",
        f"{dataset.executions:,} executions of {EVENTS_OF_AN_EXECUTION} events, and one of"
        f" {dataset.long:,}, stored as a consumer does, and copied into the naive server's table;"
        " default durability. Lists of others are asked for in one random order, each run going"
        " on where the last one ended: no cache that is smaller than all of them helps.",
        "All three are served by the same uvicorn, Starlette and bounds, uvloop, one process;"
        " static has no database; naive has the reader's number of connections, and asyncpg's own"
        " reset of each. All clients are one caller, whose limit on requests is raised.",
        "Status, length and beginning of every answer are checked, and the whole first one of each"
        " run, against bodies that were made without the reader. CPU is of all threads; the"
        " client's is in the JSON.",
        f"Memory of the reader: {memory.after:.0f} MiB after all rounds, at most"
        f" {memory.peak:.0f}. The long list, read by a reader that had done little: {streams}.",
        f"Beside a consumer: it stored {contention.records:,.0f} records a second"
        f"{'' if contention.throughout else ' (and had stored all before the end)'}, from a broker"
        f" that shared the cores; answers within {contention.sample.p99 * 1000:.0f} ms (p99).",
    ]
