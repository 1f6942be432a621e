"""Time until another consumer continues the partitions of one that was killed or stopped."""

import asyncio
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from statistics import median

import asyncpg

from execution_events.cli.progress import Progress
from execution_events.consumer.service import HEARTBEATS_PER_SESSION
from execution_events.events import Occurrence
from execution_events.settings import Settings
from tests.benchmarks import recurring
from tests.benchmarks.broker import PARTITIONS, broker
from tests.benchmarks.consuming import assigned, consuming, demand_running, stored
from tests.benchmarks.figures import Spread, Verdict, short
from tests.benchmarks.report import Report
from tests.benchmarks.servers import Postgres, postgres
from tests.support.configuration import configured
from tests.support.consumers import end_offsets, next_offsets, until
from tests.support.processes import Service

BARS = {signal.SIGKILL: 10, signal.SIGTERM: 2}
"""Maximum seconds of a run."""
_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 0}
"""The expected exit codes."""
_HEARTBEAT_INTERVAL = Settings().consumer.session_timeout / HEARTBEATS_PER_SESSION
"""Seconds between two heartbeats of a consumer."""
_POLL_INTERVAL = 0.02
"""Seconds between two reads of the stored offsets."""
_TIMEOUT = 120
"""Seconds until all partitions must have moved."""

COLUMNS = (
    *("Signal", "runs", "seconds", "min", "max"),
    *("until exit", "until assigned", "from assigned on"),
)


class Flow:
    """Records at a steady rate until it is stopped; `published` counts them."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._stopped = threading.Event()
        self.published = 0

    def records(self) -> Iterator[Occurrence]:
        """Yield each record at its time, and late ones at once."""
        begun = time.monotonic()
        for each in recurring.records(sys.maxsize):
            if self._stopped.wait(begun + self.published / self._rate - time.monotonic()):
                return
            self.published += 1
            yield each

    def stop(self) -> None:
        """End `records`, from any thread."""
        self._stopped.set()


class Handover:
    """Progress of partitions from a consumer that ends to its successor. Times are seconds.

    `stored` holds the offsets at the signal. The ending consumer may still store after it, so only
    offsets stored after the successor logged its assignment count as moved.
    """

    def __init__(self, partitions: Sequence[int], stored: Mapping[int, int]) -> None:
        self._partitions = frozenset(partitions)
        self._stored = stored
        self.assigned: float | None = None
        self.moved: dict[int, float] = {}

    @property
    def over(self) -> bool:
        """True once all partitions have moved."""
        return self.moved.keys() == self._partitions

    def observe(self, seconds: float, stored: Mapping[int, int], held: Sequence[int]) -> None:
        """Take the stored offsets and the successor's partitions, read in this order."""
        if self.assigned is None:
            if not self._partitions.issubset(held):
                self._stored = stored
                return
            self.assigned = seconds
        for partition in self._partitions - self.moved.keys():
            if stored[partition] > self._stored[partition]:
                self.moved[partition] = seconds


@dataclass(frozen=True)
class Sample:
    """One consumer that ended. Seconds are from the signal on."""

    signal: str
    elder: bool
    """True if it was in the group longer than the other consumer."""
    partitions: list[int]
    """The partitions that it held."""
    code: int
    exited: float
    assigned: float
    """Until the other consumer held all partitions."""
    moved: float
    """Until the other consumer had stored records of each of these partitions."""


@dataclass
class Group:
    """Two consumers, the elder first, and their database."""

    server: Postgres
    settings: Settings
    connection: asyncpg.Connection
    stack: AsyncExitStack
    members: list[Service]

    async def fill(self) -> None:
        """Start consumers until there are two."""
        missing = 2 - len(self.members)
        started = consuming(self.server, self.settings, missing)
        self.members += await self.stack.enter_async_context(started)

    async def offsets(self) -> dict[int, int]:
        """Return the stored next offset of each partition."""
        return await next_offsets(self.connection, self.settings.kafka.topic)

    async def settle(self) -> None:
        """Return once both hold partitions and every partition has progressed since."""
        held: list[list[int]] = []
        before: dict[int, int] = {}

        async def flows() -> bool:
            demand_running(self.members)
            now = await self.offsets()
            holding = [assigned(member.output) for member in self.members]
            if holding != held or not shared(holding):
                held[:] = holding
                before.update(now)
                return False
            return all(now.get(each, 0) > before.get(each, 0) for each in range(PARTITIONS))

        await until(flows, "both consumers hold partitions and all of them progress")


def shared(holding: Sequence[Sequence[int]]) -> bool:
    """Return true if each consumer holds some partitions and each partition is held once."""
    return all(holding) and sorted(chain.from_iterable(holding)) == list(range(PARTITIONS))


async def run(runs: int, rate: int) -> Report:
    """End one of two consumers and replace it, repeatedly, while records arrive."""
    rounds = [(number, run) for run in range(runs) for number in BARS]
    progress = Progress(len(rounds))
    samples: list[Sample] = []
    flow = Flow(rate)
    async with _group() as group:
        async with _flowing(group.settings, flow):
            for number, run in rounds:
                progress.show(len(samples), f"runs; next signal {number.name}")
                await group.fill()
                await group.settle()
                # Heartbeats of both begin together: runs signal at different phases of them.
                await asyncio.sleep(_HEARTBEAT_INTERVAL * (run + 0.5) / runs)
                samples.append(await _end(group, number, elder=run % 2 == 0))
        wrong = await _compared(group, flow.published)
    progress.end()
    return report(samples, rate, flow.published, wrong)


@asynccontextmanager
async def _group() -> AsyncIterator[Group]:
    async with postgres() as server, server.database() as database, broker() as kafka:
        settings = configured(kafka.settings, database_url=database.writer, management_port=0)
        connection = await asyncpg.connect(database.owner)
        try:
            async with AsyncExitStack() as stack:
                yield Group(server, settings, connection, stack, [])
        finally:
            await connection.close()


@asynccontextmanager
async def _flowing(settings: Settings, flow: Flow) -> AsyncIterator[None]:
    producing = asyncio.create_task(asyncio.to_thread(recurring.produce, settings, flow.records()))
    try:
        yield
    finally:
        flow.stop()
        await producing


async def _end(group: Group, number: signal.Signals, elder: bool) -> Sample:
    """Signal one of the two and measure until its partitions have moved to the other."""
    ended = group.members.pop(0 if elder else 1)
    partitions = assigned(ended.output)
    handover = Handover(partitions, await group.offsets())
    exited: float | None = None
    begun = time.monotonic()
    ended.process.send_signal(number)
    async with asyncio.timeout(_TIMEOUT):
        while not handover.over or exited is None:
            demand_running(group.members)
            offsets, seconds = await group.offsets(), time.monotonic() - begun
            handover.observe(seconds, offsets, assigned(group.members[0].output))
            if exited is None and ended.process.returncode is not None:
                exited = seconds
            await asyncio.sleep(_POLL_INTERVAL)
    assert handover.assigned is not None
    assert ended.process.returncode is not None
    return Sample(
        signal=number.name,
        elder=elder,
        partitions=partitions,
        code=ended.process.returncode,
        exited=exited,
        assigned=handover.assigned,
        moved=max(handover.moved.values()),
    )


async def _compared(group: Group, published: int) -> list[str]:
    """Wait until all published records are stored; return the differences of the counts."""
    records = sum((await end_offsets(group.settings)).values())
    if records != published:
        raise RuntimeError(f"{records} of {published} records are in the topic")

    async def all_stored() -> bool:
        demand_running(group.members)
        return await stored(group.connection, group.settings.kafka.topic) == published

    await until(all_stored, "all records are stored")
    expected = await asyncio.to_thread(recurring.counts, recurring.records(published))
    return recurring.difference(expected, await recurring.stored(group.connection))


def report(samples: Sequence[Sample], rate: int, published: int, wrong: Sequence[str]) -> Report:
    """Return the table of the samples."""
    found = {
        number: [sample for sample in samples if sample.signal == number.name] for number in BARS
    }
    return Report(
        "handover",
        {"rate": rate, "runs": len(samples) // len(BARS), "partitions": PARTITIONS},
        COLUMNS,
        [_row(number.name, each) for number, each in found.items()],
        [
            Verdict(
                f"{number.name} until all partitions progress again, slowest run",
                max(sample.moved for sample in each),
                BARS[number],
                "s",
                at_most=True,
            )
            for number, each in found.items()
        ],
        _notes(rate, published),
        {"published": published, "samples": [asdict(sample) for sample in samples]},
        [
            *(
                f"a consumer ended with exit code {sample.code} after {number.name}"
                for number, each in found.items()
                for sample in each
                if sample.code != _CODES[number]
            ),
            *wrong,
        ],
    )


def _row(name: str, samples: Sequence[Sample]) -> tuple[str, ...]:
    spread = Spread.of([sample.moved for sample in samples])
    return (
        name,
        str(len(samples)),
        *(_short(each) for each in (spread.median, spread.least, spread.greatest)),
        _short(median(sample.exited for sample in samples)),
        _short(median(sample.assigned for sample in samples)),
        _short(median(sample.moved - sample.assigned for sample in samples)),
    )


def _short(seconds: float) -> str:
    return short(round(seconds, 2))


def _notes(rate: int, published: int) -> list[str]:
    return [
        f"Two consumers of one group with default settings, {PARTITIONS} partitions, and {rate:,}"
        f" records a second throughout, {published:,} in total. Each run ends one consumer, the"
        " elder and the younger in turn, and starts another one before the next run.",
        "The clock runs from the signal until the other consumer has stored records of every"
        " partition of the ended one. Only records stored after the other consumer logged its"
        f" assignment count. Offsets are read every {_POLL_INTERVAL * 1000:.0f} ms; the bars apply"
        " to the slowest run.",
        "The signal is sent once the consumers have shared the partitions and stored records of"
        " each, in every run at another phase of their heartbeats, which are"
        f" {_HEARTBEAT_INTERVAL} s apart.",
        "`until assigned` and `from assigned on` add up to `seconds`. Both, and the time until the"
        " process exits, are medians.",
        "PostgreSQL with default durability, the broker, the consumers and the producer share the"
        " cores. After SIGTERM the exit code must be 0, and at the end every count must equal the"
        " published one, event by event.",
    ]
