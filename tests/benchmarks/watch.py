"""Time from commit to many watchers, and completeness of the messages that each receives."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import msgspec

from execution_events.cli.progress import Progress
from execution_events.store.write.batches import BatchWriter
from tests.benchmarks import changes as changes_module
from tests.benchmarks import servers, usage
from tests.benchmarks.changes import Change, Commit, Judgement, Watcher, judge
from tests.benchmarks.client import Client, client
from tests.benchmarks.figures import Verdict, percentile, short
from tests.benchmarks.report import Report
from tests.benchmarks.schedule import Schedule
from tests.benchmarks.servers import Postgres, Serving
from tests.benchmarks.watchers import Plan, Seen, Watch
from tests.support import records

LATENCY_BAR = 250
"""p99 from the commit to the watcher, in milliseconds."""
_SETTLE_TIMEOUT = 15
"""Seconds after the last commit until a missing message counts as missed."""
_POLL_INTERVAL = 0.2
"""Seconds between two counts of the messages."""
_IDLE = 5
"""Seconds without changes in which CPU is measured, at most the time with changes."""
_SPARE_STREAMS = 100
"""The reader's limit on streams beyond the watchers."""
_TOPIC = "watch"
"""Topic of the stored records; it does not exist in Kafka."""

COLUMNS = ("Watchers", "messages", "p50 ms", "p99 ms", "max ms")


@dataclass(frozen=True)
class Cpu:
    """CPU seconds a second: 1 is a whole core."""

    reader: float
    postgres: float
    watchers: float


@dataclass(frozen=True)
class Measured:
    """Figures of the servers and the schedule. Seconds, MiB."""

    ready: float
    """Until all watchers had their first lists."""
    idle: Cpu
    """Without changes."""
    busy: Cpu
    """With changes."""
    rate: float
    """Changes a second."""
    latest: float
    """The longest delay of a commit."""
    memory: float
    """Of the reader at the end."""
    peak: float


class Clock:
    """CPU since its creation."""

    def __init__(self, server: Postgres, reader: Serving, process: Client) -> None:
        self._server, self._reader, self._process = server, reader, process
        self._before = self._used()

    def cpu(self) -> Cpu:
        seconds, *used = (
            end - start for start, end in zip(self._before, self._used(), strict=True)
        )
        return Cpu(*(each / seconds for each in used))

    def _used(self) -> tuple[float, ...]:
        pids = self._reader.pid, self._process.pid
        reader, watchers = map(usage.cpu, pids)
        return time.monotonic(), reader, self._server.cpu, watchers


async def run(watchers: int, executions: int, rate: int, seconds: float) -> Report:
    """Watch while events change at `rate` for `seconds`, and compare."""
    watching = changes_module.watchers(watchers, executions)
    changed = changes_module.changes(int(rate * seconds), executions)
    progress = Progress(len(changed))
    async with (
        servers.postgres() as server,
        server.database() as database,
        BatchWriter(database.writer, _TOPIC) as writer,
    ):
        progress.show(0, "changes; connecting watchers")
        first = [event for each in range(executions) for event in changes_module.listed(each)]
        await writer.begin_partition(0, 0, "cluster")
        await writer.store(records.batch(records.log(first)))
        streams = watchers + _SPARE_STREAMS
        async with (
            servers.reader(
                server, database, reader_max_streams=streams, reader_max_streams_per_token=streams
            ) as reader,
            client("watchers") as process,
        ):
            ready = await _ready(process, reader, watching)
            clock = Clock(server, reader, process)
            await asyncio.sleep(min(_IDLE, seconds))
            idle = clock.cpu()
            clock, begun = Clock(server, reader, process), time.monotonic()
            commits, latest = await _commit(writer, changed, len(first), rate, progress)
            spent, busy = time.monotonic() - begun, clock.cpu()
            await _settled(process, watching, changed)
            file = server.log("seen")
            await process.send(f"stop {file}".encode())
            seen = msgspec.json.decode(file.read_bytes(), type=list[Seen])
            lists = await _lists(reader, watching)
            measured = Measured(
                ready=ready,
                idle=idle,
                busy=busy,
                rate=len(commits) / spent,
                latest=latest,
                memory=usage.memory(reader.pid),
                peak=usage.memory(reader.pid, "VmHWM"),
            )
    progress.end()
    judgement = judge(watching, seen, changed, commits, lists)
    return report(watching, judgement, measured, executions, rate, seconds)


async def _ready(process: Client, reader: Serving, watching: Sequence[Watcher]) -> float:
    watches = [
        Watch(
            watcher.path,
            sum(map(watcher.filter.matches, changes_module.listed(watcher.execution))),
        )
        for watcher in watching
    ]
    answer = await process.send(msgspec.json.encode(Plan(reader.address, watches)))
    if problems := answer["problems"]:
        raise RuntimeError(f"{len(problems)} watchers got no first list: {problems[0]}")
    seconds: float = answer["seconds"]
    return seconds


async def _commit(
    writer: BatchWriter, changed: Sequence[Change], offset: int, rate: int, progress: Progress
) -> tuple[list[Commit], float]:
    """Commit each change at its time; return the commits and the longest delay in seconds."""
    commits: list[Commit] = []
    schedule = Schedule(rate)
    for number, change in enumerate(changed):
        progress.show(number, "changes")
        batch = records.batch(records.log([change.record], begin=offset + number))
        begun = await schedule.wait(number)
        await writer.store(batch)
        commits.append(Commit(begun, time.monotonic()))
    return commits, schedule.late


async def _settled(process: Client, watching: Sequence[Watcher], changed: Sequence[Change]) -> None:
    """Return once as many messages have arrived as expected, or after the timeout."""
    by_execution: dict[int, list[Change]] = {}
    for change in changed:
        by_execution.setdefault(change.execution, []).append(change)
    expected = sum(
        changes_module.due(watcher, change)
        for watcher in watching
        for change in by_execution.get(watcher.execution, [])
    )
    deadline = time.monotonic() + _SETTLE_TIMEOUT
    while time.monotonic() < deadline:
        if (await process.send(b"seen"))["messages"] >= expected:
            break
        await asyncio.sleep(_POLL_INTERVAL)
    # Leave time for messages that should not arrive.
    await asyncio.sleep(_POLL_INTERVAL)


async def _lists(reader: Serving, watching: Sequence[Watcher]) -> dict[str, dict[str, Any]]:
    """Return the events in the list of each watched path, by name."""
    async with httpx.AsyncClient(base_url=reader.address) as client:
        return {
            path: {
                event["metadata"]["name"]: event
                for event in (await client.get(path)).raise_for_status().json()
            }
            for path in {watcher.path for watcher in watching}
        }


def report(
    watching: Sequence[Watcher],
    judgement: Judgement,
    measured: Measured,
    executions: int,
    rate: int,
    seconds: float,
) -> Report:
    """Return the table of the latencies."""
    latencies = judgement.latencies
    every = [each for found in latencies.values() for each in found]
    wrong = {
        "changes that a watcher did not receive": judgement.missed,
        "watchers whose view differs from the list": judgement.different,
        "watchers without a first reset or an id, or with a falling count": judgement.unordered,
        "watchers whose stream ended": judgement.ended,
    }
    return Report(
        "watch",
        {"watchers": len(watching), "executions": executions, "rate": rate, "seconds": seconds},
        COLUMNS,
        [
            _row(f"all {len(watching):,}", every),
            *(_row(query or "without a filter", found) for query, found in latencies.items()),
        ],
        [
            Verdict(
                "commit to watcher, p99",
                percentile(every, 99) * 1000 if every else float("inf"),
                LATENCY_BAR,
                "ms",
                at_most=True,
            ),
            *(Verdict(what, len(found), 0, at_most=True) for what, found in wrong.items()),
        ],
        _notes(watching, judgement, measured, executions),
        {
            "measured": asdict(measured),
            "percentiles": {
                query: [percentile(found, percent) for percent in range(101)]
                for query, found in latencies.items()
            },
            "resets": judgement.resets,
            "needless": judgement.needless,
        },
        [f"{len(found):,} {what}: {found[0]}" for what, found in wrong.items() if found],
    )


def _row(title: str, found: Sequence[float]) -> tuple[str, ...]:
    times = (percentile(found, percent) for percent in (50, 99, 100)) if found else ()
    figures = [short(round(each * 1000, 1)) for each in times]
    return (title, f"{len(found):,}", *(figures or [""] * 3))


def _notes(
    watching: Sequence[Watcher], judgement: Judgement, measured: Measured, executions: int
) -> list[str]:
    return [
        f"{len(watching):,} connections of one client process to one reader, on {executions:,}"
        f" executions of {changes_module.LISTED} events; {measured.rate:.1f} changes a second, each"
        " committed in a transaction of its own with default durability; longest delay of a commit"
        f" {measured.latest * 1000:.0f} ms.",
        "PostgreSQL, the reader, the watchers and the writer share the cores. The clock, the same"
        " in both processes, runs from the return of the commit until the watchers' process has"
        " the bytes.",
        f"First lists of all: {measured.ready:.1f} s. CPU of the reader: {measured.idle.reader:.0%}"
        f" of a core without changes, {measured.busy.reader:.0%} with them; of PostgreSQL"
        f" {measured.idle.postgres:.0%} and {measured.busy.postgres:.0%}; of the watchers"
        f" {measured.busy.watchers:.0%}.",
        f"Memory of the reader: {measured.memory:.0f} MiB at the end, at most {measured.peak:.0f}.",
        "An event that ceases to match a filter must be reported as gone. A later state of an event"
        f" also reports the earlier ones. Resets after the first: {judgement.resets:,}; messages"
        f" without a change: {judgement.needless:,}.",
        "The reader's limits on streams are raised; all watchers are one caller.",
    ]
