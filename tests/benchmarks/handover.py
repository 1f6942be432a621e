"""How soon the partitions of a consumer that ends, killed or in order, move on in another one."""

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
"""Seconds, at most, in every run."""
_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 0}
"""The exit codes that are due."""
_BEAT = Settings().consumer.session_timeout / HEARTBEATS_PER_SESSION
"""Seconds between two heartbeats of a consumer."""
_LOOK = 0.02
"""Seconds between two looks at the stored offsets."""
_LIMIT = 120
"""Seconds until all must have moved."""

COLUMNS = (
    *("Ended by", "runs", "seconds", "min", "max"),
    *("until it had ended", "until assigned", "from there on"),
)


class Flow:
    """Records at a steady rate until it is stopped; `published` is how many there were."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._stopped = threading.Event()
        self.published = 0

    def records(self) -> Iterator[Occurrence]:
        """Each record at its time; what is late comes at once."""
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
    """How the partitions of a consumer that has ended come to another one. Seconds.

    What the other one stores is what is stored once its log says that it holds them; `stored` is
    what was stored at the signal, and the one that ends may store more after that.
    """

    def __init__(self, partitions: Sequence[int], stored: Mapping[int, int]) -> None:
        self._partitions = frozenset(partitions)
        self._stored = stored
        self.assigned: float | None = None
        self.moved: dict[int, float] = {}

    @property
    def over(self) -> bool:
        """Whether all have moved."""
        return self.moved.keys() == self._partitions

    def look(self, seconds: float, stored: Mapping[int, int], held: Sequence[int]) -> None:
        """Take what is stored, and what the other one held after that was looked up."""
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
    """Whether it had been in the group for longer than the other one."""
    partitions: list[int]
    """That it held."""
    code: int
    exited: float
    assigned: float
    """Until the other one held all partitions."""
    moved: float
    """Until it had stored records of every partition that the ended one held."""


@dataclass
class Group:
    """Two consumers, the elder first, and what they store into."""

    server: Postgres
    settings: Settings
    connection: asyncpg.Connection
    stack: AsyncExitStack
    members: list[Service]

    async def fill(self) -> None:
        """Start what is missing of two consumers."""
        missing = 2 - len(self.members)
        started = consuming(self.server, self.settings, missing)
        self.members += await self.stack.enter_async_context(started)

    async def offsets(self) -> dict[int, int]:
        """The stored next offset of each partition."""
        return await next_offsets(self.connection, self.settings.kafka.topic)

    async def settle(self) -> None:
        """Return once both hold partitions, and have stored records of all since then."""
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

        await until(flows, "both consumers hold partitions, and all of them move")


def shared(holding: Sequence[Sequence[int]]) -> bool:
    """Whether each holds a part of the partitions, and all are held once."""
    return all(holding) and sorted(chain.from_iterable(holding)) == list(range(PARTITIONS))


async def run(runs: int, rate: int) -> Report:
    """End one of two consumers and start another, again and again, while records flow."""
    rounds = [(number, run) for run in range(runs) for number in BARS]
    progress = Progress(len(rounds))
    samples: list[Sample] = []
    flow = Flow(rate)
    async with _group() as group:
        async with _flowing(group.settings, flow):
            for number, run in rounds:
                progress.show(len(samples), f"runs; {number.name} follows")
                await group.fill()
                await group.settle()
                # Both beat from the same moment on: each run ends one at another time of a beat.
                await asyncio.sleep(_BEAT * (run + 0.5) / runs)
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
    """Send one of the two a signal, and see its partitions come to the other one."""
    ended = group.members.pop(0 if elder else 1)
    partitions = assigned(ended.output)
    handover = Handover(partitions, await group.offsets())
    exited: float | None = None
    begun = time.monotonic()
    ended.process.send_signal(number)
    async with asyncio.timeout(_LIMIT):
        while not handover.over or exited is None:
            demand_running(group.members)
            offsets, seconds = await group.offsets(), time.monotonic() - begun
            handover.look(seconds, offsets, assigned(group.members[0].output))
            if exited is None and ended.process.returncode is not None:
                exited = seconds
            await asyncio.sleep(_LOOK)
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
    """What is wrong with the counts, once all that was published is stored."""
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
    """The table of what was measured."""
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
                f"{number.name} until all partitions move again, slowest run",
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
        f" records a second all the time, {published:,} in all. One consumer is ended, the elder"
        " and the younger in turn, and another one started before the next run.",
        "The clock runs from the signal until the other consumer has stored records of every"
        " partition that the ended one held: beyond what was stored, by whomever, until the other"
        " one's log said that these partitions are its own. It looks every"
        f" {_LOOK * 1000:.0f} ms; the bars hold the slowest run.",
        "The signal comes once both have stored records of all partitions since they share them,"
        f" and each run's at another time between two of their heartbeats, {_BEAT} s apart.",
        "`until assigned` and `from there on` are parts of `seconds`: until the other consumer"
        " holds the partitions, and until all of them have moved. Medians, like the end of the"
        " process.",
        "PostgreSQL with default durability, the broker, the consumers and the producer share the"
        " cores. After SIGTERM the exit code must be 0, and in the end every count that of what"
        " was published, event by event.",
    ]
