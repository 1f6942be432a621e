"""Time from the return of `publish` until an event is seen by watching and by polling."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from statistics import median

import asyncpg
import msgspec

from execution_events.cli.progress import Progress
from execution_events.settings import Settings
from tests.benchmarks import consuming, latency_worker, poller, recurring, servers, trees, watchers
from tests.benchmarks.broker import PARTITIONS, Broker, broker
from tests.benchmarks.client import Client, client
from tests.benchmarks.course import LISTED, Arrivals, Course, arrivals, number_of
from tests.benchmarks.figures import Verdict, percentile, short
from tests.benchmarks.latency_worker import Published
from tests.benchmarks.poller import Polled
from tests.benchmarks.report import Report
from tests.benchmarks.servers import Postgres, Serving
from tests.benchmarks.trees import COST_BAR, THIS, Tree
from tests.benchmarks.watchers import Seen
from tests.benchmarks.worker import measured
from tests.support.configuration import configured
from tests.support.databases import Database
from tests.support.processes import environment

BARS = {10: 50, 1000: 150}
"""p99 in milliseconds by events a second."""
INTERVAL = 0.002
"""Seconds between two requests for a list."""
_WARM = Course(run="warm", rate=50, samples=100)
"""Published first, without figures."""
_SETTLE_TIMEOUT = 60
"""Seconds after the last `publish` until an unseen event counts as missed."""
_POLL_INTERVAL = 0.2
"""Seconds between two counts of the events seen."""
_STREAMS = 1000
"""The reader's limit on streams."""

COLUMNS = (
    *("Events a second", "seen by", "events", "p50 ms", "p99 ms", "max ms"),
    *("published/s", "p50 of a poll ms", "p99 of a poll ms"),
)


@dataclass(frozen=True)
class Measured:
    """The figures of a course. Times are seconds."""

    course: Course
    rate: float
    """Published events a second."""
    late: float
    """The longest delay of a `publish` call."""
    watched: Arrivals
    polled: Arrivals
    requests: int
    """Requests of the poller."""
    poll_p50: float
    poll_p99: float
    wrong: list[str]
    other_tree: bool = False

    @property
    def key(self) -> str:
        return f"{self.course.rate}-other-tree" if self.other_tree else str(self.course.rate)

    @property
    def ways(self) -> tuple[tuple[str, list[float]], ...]:
        """The seconds until each event was seen, by way."""
        return (("HTTP", self.polled.seconds), ("watch", self.watched.seconds))

    @property
    def broken(self) -> list[str]:
        ways = (("watch", self.watched.wrong), ("polling", self.polled.wrong), ("", self.wrong))
        return [
            f"{self.course.rate:,} events a second: {f'{way}: ' if way else ''}{wrong}"
            for way, found in ways
            for wrong in found
        ]


@dataclass(frozen=True)
class Pipeline:
    """A tree's services between a publisher and its readers, with a topic and a database."""

    postgres: Postgres
    database: Database
    settings: Settings
    reader: Serving
    tree: Tree


async def run(
    rates: Sequence[int], samples: int, rounds: int = 1, tree: Tree | None = None
) -> Report:
    """Publish once a round at each rate, through one consumer and one reader.

    With `tree`, its publisher, consumer and reader run in turn with this tree's, on the same
    servers.
    """
    found: list[Measured] = []
    progress = Progress(rounds * len(rates) * (2 if tree else 1))
    async with servers.postgres() as server, broker() as kafka, AsyncExitStack() as stack:
        pipelines = [
            await stack.enter_async_context(_pipeline(server, kafka, each))
            for each in (THIS, tree)
            if each is not None
        ]
        progress.show(0, "runs; warming up")
        for pipeline in pipelines:
            await _measure(pipeline, _WARM)
        for number in range(rounds):
            for rate in rates:
                for pipeline in trees.in_turn(pipelines, number):
                    progress.show(len(found), f"runs; round {number + 1}, {rate:,} a second")
                    course = Course(secrets.token_hex(4), rate, samples)
                    found.append(await _measure(pipeline, course))
    progress.end()
    return report(found, samples)


@asynccontextmanager
async def _pipeline(server: Postgres, kafka: Broker, tree: Tree) -> AsyncIterator[Pipeline]:
    limits = {"reader_max_streams": _STREAMS, "reader_max_streams_per_token": _STREAMS}
    async with consuming.database(server, tree) as database:
        settings = configured(
            await kafka.topic(),
            database_url=database.writer,
            group=f"benchmark-{secrets.token_hex(4)}",
            management_port=0,
        )
        async with (
            consuming.consuming(server, settings, 1, tree),
            servers.reader(server, database, tree, **limits) as reader,
        ):
            yield Pipeline(server, database, settings, reader, tree)


async def _measure(pipeline: Pipeline, course: Course) -> Measured:
    polled_numbers, executions = course.polled, course.executions
    async with client("watchers") as watching, client("poller") as polling:
        await _begin(pipeline.reader, course, watching, polling)
        published = await _publish(pipeline, course)
        await _settled(watching, polling, course)
        files = [pipeline.postgres.log(name) for name in ("watched", "polled")]
        for each, file in zip((watching, polling), files, strict=True):
            await each.send(f"stop {file}".encode())
    seen = msgspec.json.decode(files[0].read_bytes(), type=list[Seen])
    polled = msgspec.json.decode(files[1].read_bytes(), type=Polled)
    for file in files:
        file.unlink()
    watched, wrong = first_messages(seen)
    return Measured(
        course=course,
        rate=published.rate,
        late=published.late,
        watched=arrivals(published.returned, range(course.events), watched),
        polled=arrivals(
            published.returned,
            polled_numbers,
            {number_of(name): moment for name, moment in polled.seen.items()},
        ),
        requests=polled.requests,
        poll_p50=polled.p50,
        poll_p99=polled.p99,
        wrong=[*wrong, *polled.problems, *await _counts(pipeline.database, course, executions)],
        other_tree=pipeline.tree is not THIS,
    )


async def _begin(reader: Serving, course: Course, watching: Client, polling: Client) -> None:
    paths = [f"/v1/executions/{each}/events" for each in course.executions]
    plan = watchers.Plan(reader.address, [watchers.Watch(path, 0) for path in paths])
    answer = await watching.send(msgspec.json.encode(plan))
    if problems := answer["problems"]:
        raise RuntimeError(f"{len(problems)} watchers got no first list: {problems[0]}")
    lists = [
        poller.List(path, length) for path, length in zip(paths, course.polled_lists, strict=False)
    ]
    polls = poller.Plan(reader.address, INTERVAL, course.ahead, lists)
    await polling.send(msgspec.json.encode(polls))


async def _publish(pipeline: Pipeline, course: Course) -> Published:
    found = await measured(
        *("-m", latency_worker.__name__),
        env=environment(pipeline.settings),
        stdin=msgspec.json.encode(course),
        tree=pipeline.tree,
    )
    return msgspec.convert(found, Published)


async def _settled(watching: Client, polling: Client, course: Course) -> None:
    """Return once as many events are seen as expected, or after the timeout."""
    deadline = time.monotonic() + _SETTLE_TIMEOUT
    while time.monotonic() < deadline:
        watched, polled = await watching.send(b"seen"), await polling.send(b"seen")
        if watched["messages"] >= course.events and polled["events"] >= len(course.polled):
            break
        await asyncio.sleep(_POLL_INTERVAL)
    # Leave time for messages that should not arrive.
    await asyncio.sleep(_POLL_INTERVAL)


async def _counts(database: Database, course: Course, executions: Sequence[str]) -> list[str]:
    connection = await asyncpg.connect(database.owner)
    try:
        found = await recurring.stored(connection, executions=executions)
    finally:
        await connection.close()
    return recurring.difference(course.counts(), found)


def first_messages(seen: Sequence[Seen]) -> tuple[dict[int, float], list[str]]:
    """Return the time of the first message about each event, and errors of the watchers."""
    moments: dict[int, float] = {}
    repeated, wrong = 0, []
    for each in seen:
        if each.problem is not None:
            wrong.append(f"a watch ended: {each.problem}")
        for note in each.notes:
            number = number_of(note.name)
            repeated += number in moments or note.times != 1
            moments.setdefault(number, note.moment)
    if repeated:
        wrong.append(f"{repeated:,} messages about events already sent or counted twice")
    return moments, wrong


def merged(found: Sequence[Measured]) -> Measured:
    """Return the figures of all rounds of one rate: all arrivals, medians of the other times."""
    return replace(
        found[0],
        rate=median(each.rate for each in found),
        late=max(each.late for each in found),
        watched=_joined([each.watched for each in found]),
        polled=_joined([each.polled for each in found]),
        requests=sum(each.requests for each in found),
        poll_p50=median(each.poll_p50 for each in found),
        poll_p99=median(each.poll_p99 for each in found),
        wrong=[wrong for each in found for wrong in each.wrong],
    )


def _joined(found: Sequence[Arrivals]) -> Arrivals:
    return Arrivals(
        [seconds for each in found for seconds in each.seconds],
        [wrong for each in found for wrong in each.wrong],
    )


def report(measurements: Sequence[Measured], samples: int) -> Report:
    """Return the table of the courses; those of one rate and tree are rounds, in order."""
    rounds: dict[str, list[Measured]] = {}
    for each in sorted(measurements, key=lambda each: (each.course.rate, each.other_tree)):
        rounds.setdefault(each.key, []).append(each)
    found = [merged(each) for each in rounds.values()]
    return Report(
        "latency",
        {
            "rates": [each.course.rate for each in found if not each.other_tree],
            "samples": samples,
            "rounds": len(next(iter(rounds.values()))),
            "partitions": PARTITIONS,
            "interval": INTERVAL,
        },
        COLUMNS,
        [row for each in found for row in _rows(each)],
        [*_verdicts(found), *_tree_verdicts(rounds)],
        _notes([each for each in found if not each.other_tree]),
        {key: [_figures(each) for each in turns] for key, turns in rounds.items()},
        [wrong for each in found for wrong in each.broken],
    )


def _verdicts(found: Sequence[Measured]) -> Iterator[Verdict]:
    for each in found:
        if each.course.rate in BARS and not each.other_tree:
            for way, seconds in each.ways:
                title = f"publish to {way} at {each.course.rate:,} events a second, p99"
                figure = _milliseconds(seconds, 99)
                yield Verdict(title, figure, BARS[each.course.rate], "ms", at_most=True)


def _tree_verdicts(rounds: dict[str, list[Measured]]) -> Iterator[Verdict]:
    for key, ours in rounds.items():
        others = rounds.get(f"{key}-other-tree", [])
        for way, percent in product(("HTTP", "watch"), (50, 99) if others else ()):
            times, references = (
                [_milliseconds(dict(each.ways)[way], percent) for each in tree]
                for tree in (ours, others)
            )
            title = f"publish to {way} at {ours[0].course.rate:,} events a second, p{percent}"
            yield trees.verdict(title, times, references, COST_BAR, at_most=True)


def _milliseconds(seconds: Sequence[float], percent: float) -> float:
    return percentile(seconds, percent) * 1000 if seconds else float("inf")


def _figures(each: Measured) -> dict[str, object]:
    return asdict(replace(each, course=msgspec.to_builtins(each.course))) | {
        way: [percentile(found.seconds, percent) for percent in range(101)] if found.seconds else []
        for way, found in (("watched", each.watched), ("polled", each.polled))
    }


def _rows(each: Measured) -> list[tuple[str, ...]]:
    title = trees.OTHER_TITLE if each.other_tree else f"{each.course.rate:,}"
    polls = [short(round(time * 1000, 2)) for time in (each.poll_p50, each.poll_p99)]
    rate = short(round(each.rate, 1))
    return [
        (title, way, *_times(seconds), rate, *(polls if way == "HTTP" else ["", ""]))
        for way, seconds in each.ways
    ]


def _times(seconds: Sequence[float]) -> tuple[str, ...]:
    times = [percentile(seconds, percent) for percent in (50, 99, 100)] if seconds else []
    figures = [short(round(each * 1000, 1)) for each in times]
    return (f"{len(seconds):,}", *(figures or [""] * 3))


def _notes(found: Sequence[Measured]) -> list[str]:
    late = ", ".join(f"{each.late * 1000:.0f} ms at {each.course.rate:,}" for each in found)
    requests = ", ".join(f"{each.requests:,} at {each.course.rate:,}" for each in found)
    return [
        "One broker, PostgreSQL with default durability, one consumer, one reader, one worker"
        " without a spool, one watching and one polling process share the cores.",
        "The clock, the same in all processes, runs from the return of `publish` until the reading"
        " process has the bytes of the event; it is negative if they came before.",
        "All executions are watched, and no event recurs. All events up to 100 a second are polled"
        f" for, above that an equal share, in executions of {LISTED} events one after another; the"
        " other events belong to concurrent executions. Longest delay of a `publish` call:"
        f" {late}.",
        f"A list is requested every {INTERVAL * 1000:.0f} ms with the tag of the last answer, or as"
        " soon as that has arrived. HTTP therefore sees an event at most one interval and one"
        f" answer late, on average half of that. Requests: {requests}.",
        "Every event must be seen by its watch and every polled event by HTTP too, and every count"
        " in the database must equal the published one.",
    ]
