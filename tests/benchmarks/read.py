"""Rate of the reader's answers, next to a fixed body and a naive server."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from statistics import median

from msgspec import to_builtins as builtins

from execution_events.cli.progress import Progress
from tests.benchmarks import dataset as dataset_module
from tests.benchmarks import servers, trees, usage
from tests.benchmarks.contention import Contention, contend
from tests.benchmarks.dataset import Dataset
from tests.benchmarks.figures import Spread, Verdict, ratio, short
from tests.benchmarks.load import Request, Sample, measure
from tests.benchmarks.reading import Streamed, plan, stream
from tests.benchmarks.report import Report
from tests.benchmarks.requests import DEPTH, HOT, PAGE, request_sets
from tests.benchmarks.servers import Postgres
from tests.benchmarks.targets import FEW, MANY, Target, other_reader, reader, references
from tests.benchmarks.trees import Tree
from tests.benchmarks.workload import EVENTS_OF_AN_EXECUTION

UNCACHED_BAR, HOT_BAR, UNCHANGED_BAR = 2.3, 0.5, 1
"""Ratios to the naive server at few connections, to static at many, to hot lists at both."""
DEEP_BAR, LONG_BAR = 1.2, 2
"""Ratios to the time of the long execution's first page and of a short execution's first page."""
TREE_BAR = 0.95
"""Ratio to the rate of the other tree's reader."""
GROWTH_BAR = 20
"""MiB by which a reader grows while it streams the long list."""
SLOWLY = 10
"""Seconds that a slow client takes for the long list in runs of at least a second."""

COLUMNS = (
    *("Answers", "connections", "answers/s", "min", "max", "of naive", "of static"),
    *("p50 ms", "p99 ms", "server µs", "PostgreSQL µs"),
)


@dataclass(frozen=True)
class Case:
    """A row of the table: a server and a field of `RequestSets`."""

    key: str
    title: str
    server: str
    requests: str

    @property
    def twin(self) -> "Case | None":
        """The same of the other tree."""
        if self.server != READER:
            return None
        key = f"{self.key}-other-tree"
        return replace(self, key=key, title=trees.OTHER_TITLE, server=OTHER_READER)


READER, OTHER_READER = "reader", "reader of the other tree"

STATIC = Case("static", "static: a fixed body", "static", "static")
NAIVE = Case("naive", "naive: 14 columns, dicts, JSON", "naive", "lists")
UNCACHED = Case("uncached", "lists, each of another execution", "reader", "lists")
HOT_LISTS = Case("hot", f"lists of the same {HOT} executions", "reader", "hot")
UNCHANGED = Case("unchanged", "304 for the same lists", "reader", "unchanged")
GZIP = Case("gzip", "the same lists, gzip", "reader", "gzip")
ZSTD = Case("zstd", "the same lists, zstd", "reader", "zstd")
PAGES = Case("pages", f"first {PAGE} events, each of another execution", "reader", "pages")
SHORT = Case("first-short", f"first {PAGE} events of one short execution", "reader", "first_short")
LONG = Case("first-long", f"first {PAGE} events of the long execution", "reader", "first_long")
DEEP = Case("deep", f"{PAGE} events of the long execution at depth {DEPTH:.0%}", "reader", "deep")
ALL_DEEP = Case("all-deep", "pages from that depth on, in turn", "reader", "all_deep")
CASES = (
    *(STATIC, NAIVE, UNCACHED, HOT_LISTS, UNCHANGED, GZIP, ZSTD),
    *(PAGES, SHORT, LONG, DEEP, ALL_DEEP),
)

Samples = dict[str, dict[int, list[Sample]]]
"""By key of the case and number of connections, in the order of the rounds."""


@dataclass(frozen=True)
class Memory:
    """MiB of the reader after all rounds and at its peak."""

    after: float
    peak: float


@dataclass(frozen=True)
class Further:
    """Measurements of a tree's readers beside the cases, in the order of the rounds."""

    contentions: list[Contention] = field(default_factory=list)
    streams: dict[str, list[Streamed]] = field(default_factory=dict)
    """By pace at which the long list is read."""

    @property
    def contended(self) -> list[Sample]:
        return [each.sample for each in self.contentions]


def cases(tree: Tree | None) -> list[Case]:
    """Return the cases of a run: with another tree, its reader's after each of ours."""
    return trees.paired(CASES, lambda each: each.twin if tree else None)


async def run(dataset: Dataset, seconds: float, rounds: int, tree: Tree | None = None) -> Report:
    """Measure every case once a round; then read during consumption and stream, once a round too.

    With `tree`, its reader serves a database of its own schema with the same dataset.
    """
    progress = Progress(dataset.events)
    turns = cases(tree)
    async with servers.postgres() as server, server.database() as database:
        async for stored in dataset_module.store(dataset, database):
            progress.show(stored, "events stored")
        async with reader(server, database) as ours:
            progress.show(dataset.events, "events stored; making the expected bodies")
            requests = await request_sets(ours.address, dataset)
            async with AsyncExitStack() as stack:
                targets = {READER: Target(ours, requests, database)}
                targets |= await stack.enter_async_context(references(server, database, requests))
                if tree is not None:
                    progress.show(dataset.events, "events stored; storing with the other tree")
                    other = other_reader(server, dataset, tree)
                    targets[OTHER_READER] = await stack.enter_async_context(other)
                samples = await _rounds(server, targets, turns, seconds, rounds)
                memory = Memory(usage.memory(ours.pid), usage.memory(ours.pid, "VmHWM"))
                compared = [each for each in (READER, OTHER_READER) if each in targets]
                further = {each: Further() for each in compared}
                progress = Progress(rounds)
                for number in range(rounds):
                    for each in trees.in_turn(compared, number):
                        progress.show(number, "rounds; reading during consumption, and a long list")
                        await _further(server, targets[each], further[each], seconds)
        progress.show(rounds, "rounds; reading the long list slowly")
        slowly = await stream(server, database, requests, SLOWLY * min(1, seconds))
        further[READER].streams["slowly"] = [slowly]
    progress.end()
    return report(turns, dataset, samples, memory, further, rounds, seconds)


async def _further(server: Postgres, target: Target, further: Further, seconds: float) -> None:
    serving, requests, database, tree = target
    lists = plan(server, serving, requests.lists, FEW, seconds)
    further.contentions.append(await contend(server, database, lists, tree))
    whole = await stream(server, database, requests, None, tree)
    further.streams.setdefault("at once", []).append(whole)


async def _rounds(
    server: Postgres,
    targets: Mapping[str, Target],
    cases: Sequence[Case],
    seconds: float,
    rounds: int,
) -> Samples:
    samples: Samples = {case.key: {FEW: [], MANY: []} for case in cases}
    turns = [
        (each, connections)
        for case in CASES
        for connections in (FEW, MANY)
        for each in trees.paired([case], lambda each: each.twin)
        if each in cases
    ]
    progress = Progress(rounds * len(turns))
    # Each run continues after the last one of its case, so that it repeats the oldest requests.
    sent: Counter[str] = Counter()
    for number in range(rounds):
        for done, (case, connections) in enumerate(trees.in_turn(turns, number)):
            progress.show(
                number * len(turns) + done,
                f"runs; round {number + 1}, {case.key}, {connections} connections",
            )
            target = targets[case.server]
            line: list[Request] = getattr(target.requests, case.requests)
            start = sent[case.key] % len(line)
            sample = await measure(plan(server, target.serving, line, connections, seconds, start))
            sent[case.key] += sample.sent
            samples[case.key][connections].append(sample)
    progress.end()
    return samples


def report(
    cases: Sequence[Case],
    dataset: Dataset,
    samples: Samples,
    memory: Memory,
    further: Mapping[str, Further],
    rounds: int,
    seconds: float,
) -> Report:
    """Return the table of the samples."""
    ours = further[READER]
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
                for case in cases
                for connections in samples[case.key]
            ),
            *(
                (
                    *("lists during consumption" if each is ours else trees.OTHER_TITLE, str(FEW)),
                    *_spread(sample.rate for sample in each.contended),
                    *("", "", *_times(each.contended)),
                )
                for each in further.values()
            ),
        ],
        [*_verdicts(samples, ours), *_tree_verdicts(cases, samples, further)],
        [
            *_notes(dataset, memory, ours, rounds, seconds),
            *([_OTHER_NOTE] if list(cases) != list(CASES) else []),
        ],
        {
            "samples": {
                key: {str(connections): builtins(found) for connections, found in each.items()}
                for key, each in samples.items()
            },
            "memory": builtins(memory),
            "further": builtins(further),
        },
        _broken(cases, samples, further),
    )


def _rates(samples: Samples, case: Case, connections: int) -> list[float]:
    return [sample.rate for sample in samples[case.key][connections]]


def _of(samples: Samples, case: Case, reference: Case, connections: int) -> float:
    return ratio(_rates(samples, case, connections), _rates(samples, reference, connections)).median


def _row(case: Case, connections: int, samples: Samples) -> tuple[str, ...]:
    found = samples[case.key][connections]
    return (
        case.title,
        str(connections),
        *_spread(_rates(samples, case, connections)),
        *(f"{_of(samples, case, reference, connections):.2f}" for reference in (NAIVE, STATIC)),
        *_times(found),
    )


def _spread(rates: Iterable[float]) -> tuple[str, ...]:
    spread = Spread.of(list(rates))
    return tuple(short(round(each)) for each in (spread.median, spread.least, spread.greatest))


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


def _verdicts(samples: Samples, ours: Further) -> list[Verdict]:
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
            f"time of a page at depth {DEPTH:.0%}, of the first page",
            _of(samples, LONG, DEEP, FEW),
            DEEP_BAR,
            at_most=True,
        ),
        Verdict(
            "time of the long execution's first page, of a short execution's",
            _of(samples, SHORT, LONG, FEW),
            LONG_BAR,
            at_most=True,
        ),
        *(
            Verdict(
                f"growth, long list read {way}",
                max(each.grown for each in streams),
                GROWTH_BAR,
                "MiB",
                at_most=True,
            )
            for way, streams in ours.streams.items()
        ),
        Verdict(
            "errors during consumption",
            sum(each.wrong for each in ours.contended),
            0,
            at_most=True,
        ),
    ]


def _tree_verdicts(
    cases: Sequence[Case], samples: Samples, further: Mapping[str, Further]
) -> Iterator[Verdict]:
    for case in CASES:
        twin = case.twin
        if twin is not None and twin in cases:
            for connections in samples[case.key]:
                rates, others = (_rates(samples, each, connections) for each in (case, twin))
                title = f"{case.title}, {connections} connections"
                yield trees.verdict(title, rates, others, TREE_BAR)
    if OTHER_READER in further:
        pair = (further[READER], further[OTHER_READER])
        rates, others = ([sample.rate for sample in each.contended] for each in pair)
        yield trees.verdict("lists during consumption", rates, others, TREE_BAR)
        rates, others = ([1 / whole.seconds for whole in each.streams["at once"]] for each in pair)
        yield trees.verdict("rate of the long list read at once", rates, others, TREE_BAR)


def _broken(cases: Sequence[Case], samples: Samples, further: Mapping[str, Further]) -> list[str]:
    every = [
        (case.key, sample)
        for case in cases
        for found in samples[case.key].values()
        for sample in found
    ]
    contended = [
        ("during consumption", sample) for each in further.values() for sample in each.contended
    ]
    return [
        *(f"{title}: {sample.failure}" for title, sample in [*every, *contended] if sample.wrong),
        *(
            f"the long list, read {way}, is wrong"
            for each in further.values()
            for way, streams in each.streams.items()
            if not all(streamed.same for streamed in streams)
        ),
    ]


_OTHER_NOTE = (
    "The reader of the other tree serves a database with its own schema, which its consumer filled"
    " from one partition in the same order."
)


def _notes(
    dataset: Dataset, memory: Memory, ours: Further, rounds: int, seconds: float
) -> list[str]:
    streams = "; ".join(
        f"{way} in {each.seconds:.1f} s, from {each.before:.0f} MiB by {each.grown:.1f}"
        for way, [each, *_] in ours.streams.items()
    )
    stored = median(each.records for each in ours.contentions)
    throughout = all(each.throughout for each in ours.contentions)
    return [
        f"Medians of {rounds} rounds of {seconds} s each. PostgreSQL, the server and its client,"
        " one process each, share the cores with nothing else.",
        f"{dataset.executions:,} executions of {EVENTS_OF_AN_EXECUTION} events and one of"
        f" {dataset.long:,}, stored with the consumer's code and copied into the naive server's"
        " table; default durability. The lists of different executions are requested in one random"
        " order, and each run continues where the last one ended: a cache that does not hold all of"
        " them does not help.",
        "All servers are one process with the same uvicorn, Starlette, limits and uvloop. Static"
        " has no database; naive has as many connections as the reader and asyncpg's own reset of"
        " each. All clients are one caller, whose limit on requests is raised.",
        "The status, length and beginning of every answer, and the whole first answer of each run,"
        " are compared with bodies made without the reader. CPU is of all threads; the client's is"
        " in the JSON.",
        f"Memory of the reader: {memory.after:.0f} MiB after all rounds, at most"
        f" {memory.peak:.0f}. The long list from a reader that had done little: {streams}.",
        f"During consumption: the consumer stored {stored:,.0f} records a second"
        f"{'' if throughout else ' (and was done before the end)'} from a broker on the same cores;"
        f" answers within {median(each.p99 for each in ours.contended) * 1000:.0f} ms (p99).",
    ]
