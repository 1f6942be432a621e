"""Time from the return of `publish` until an event is seen by watching and by polling."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace

import asyncpg
import msgspec

from execution_events.cli.progress import Progress
from execution_events.settings import Settings
from tests.benchmarks import consuming, latency_worker, poller, recurring, servers, watchers
from tests.benchmarks.broker import PARTITIONS, Broker, broker
from tests.benchmarks.client import Client, client
from tests.benchmarks.course import LISTED, Arrivals, Course, arrivals, number_of
from tests.benchmarks.figures import Verdict, percentile, short
from tests.benchmarks.latency_worker import Published
from tests.benchmarks.poller import Polled
from tests.benchmarks.report import Report
from tests.benchmarks.servers import Postgres, Serving
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
    """The servers and services between a publisher and its readers."""

    postgres: Postgres
    database: Database
    broker: Broker
    reader: Serving


async def run(rates: Sequence[int], samples: int) -> Report:
    """Publish at each rate in turn, through one consumer and one reader."""
    courses = [Course(secrets.token_hex(4), rate, samples) for rate in rates]
    progress = Progress(sum(course.events for course in courses))
    async with _pipeline() as pipeline:
        progress.show(0, "events; warming up")
        await _measure(pipeline, _WARM)
        found: list[Measured] = []
        for course in courses:
            done = sum(each.course.events for each in found)
            progress.show(done, f"events; {course.rate:,} a second")
            found.append(await _measure(pipeline, course))
    progress.end()
    return report(found, samples)


@asynccontextmanager
async def _pipeline() -> AsyncIterator[Pipeline]:
    async with (
        servers.postgres() as server,
        server.database() as database,
        broker() as kafka,
        consuming.consuming(
            server,
            configured(
                kafka.settings,
                database_url=database.writer,
                group=f"benchmark-{secrets.token_hex(4)}",
                management_port=0,
            ),
            1,
        ),
        servers.reader(
            server, database, reader_max_streams=_STREAMS, reader_max_streams_per_token=_STREAMS
        ) as reader,
    ):
        yield Pipeline(server, database, kafka, reader)


async def _measure(pipeline: Pipeline, course: Course) -> Measured:
    polled_numbers, executions = course.polled, course.executions
    async with client("watchers") as watching, client("poller") as polling:
        await _begin(pipeline.reader, course, watching, polling)
        published = await _publish(pipeline.broker.settings, course)
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


async def _publish(settings: Settings, course: Course) -> Published:
    found = await measured(
        *("-m", latency_worker.__name__),
        env=environment(settings),
        stdin=msgspec.json.encode(course),
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


def report(found: Sequence[Measured], samples: int) -> Report:
    """Return the table of the courses."""
    return Report(
        "latency",
        {
            "rates": [each.course.rate for each in found],
            "samples": samples,
            "partitions": PARTITIONS,
            "interval": INTERVAL,
        },
        COLUMNS,
        [row for each in found for row in _rows(each)],
        [
            Verdict(
                f"publish to {way} at {each.course.rate:,} events a second, p99",
                percentile(seconds, 99) * 1000 if seconds else float("inf"),
                BARS[each.course.rate],
                "ms",
                at_most=True,
            )
            for each in found
            if each.course.rate in BARS
            for way, seconds in (("HTTP", each.polled.seconds), ("watch", each.watched.seconds))
        ],
        _notes(found),
        {
            str(each.course.rate): asdict(replace(each, course=msgspec.to_builtins(each.course)))
            | {
                way: [percentile(seconds, percent) for percent in range(101)] if seconds else []
                for way, seconds in (
                    ("watched", each.watched.seconds),
                    ("polled", each.polled.seconds),
                )
            }
            for each in found
        },
        [wrong for each in found for wrong in each.broken],
    )


def _rows(each: Measured) -> list[tuple[str, ...]]:
    polls = tuple(short(round(time * 1000, 2)) for time in (each.poll_p50, each.poll_p99))
    rate = short(round(each.rate, 1))
    return [
        (f"{each.course.rate:,}", "HTTP", *_times(each.polled.seconds), rate, *polls),
        (f"{each.course.rate:,}", "watch", *_times(each.watched.seconds), rate, "", ""),
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
