"""Rate of storing a topic in PostgreSQL with other projects, next to one consumer."""

import asyncio
import math
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from signal import SIGKILL
from statistics import median

import asyncpg
from aiokafka.partitioner import DefaultPartitioner

from execution_events.cli.progress import Progress
from execution_events.events import Occurrence
from tests.benchmarks import consuming, recurring, usage
from tests.benchmarks.broker import PARTITIONS, Broker, broker
from tests.benchmarks.figures import Spread, ratio, short
from tests.benchmarks.peers.job import TABLE, Job
from tests.benchmarks.peers.peer import PEERS, Command, Peer
from tests.benchmarks.recurring import Counts
from tests.benchmarks.reference import create_table
from tests.benchmarks.report import Report
from tests.benchmarks.servers import Postgres, postgres
from tests.benchmarks.trees import THIS
from tests.support import databases
from tests.support.configuration import configured
from tests.support.consumers import end_offsets
from tests.support.databases import Database, administrator
from tests.support.processes import Service, environment

OURS, TITLE = "consumer", "one consumer"
COLUMNS = (
    *("Stored by", "batch", "records/s", "min", "max", "of the consumer", "total seconds"),
    *("CPU µs/record", "PostgreSQL µs/record", "peak MiB", "counts"),
)
KILL_COLUMNS = ("kills", "counted twice", "lost")

_POLL_INTERVAL = 0.02
"""Seconds between two readings of the table."""
_TIMEOUT = 600
"""Seconds until all records must be stored."""
_REST = 2.0
"""Seconds without a change after which a killed peer is done."""

Identity = tuple[str, str, str]


@dataclass(frozen=True)
class Work:
    """The records to store: counts by event, and the last record of each partition."""

    counts: Counts
    last: dict[Identity, datetime]

    @classmethod
    def of(cls, records: Iterable[Occurrence], partitions: int) -> "Work":
        """Summarize records in the order in which they are produced."""
        counts: Counts = Counts()
        last: dict[int, tuple[Identity, datetime]] = {}
        assigned: dict[str, int] = {}
        partitioner, numbers = DefaultPartitioner(), list(range(partitions))
        for record in records:
            execution_id = record.execution_id
            counts[execution_id, record.name] += record.count
            if execution_id not in assigned:
                assigned[execution_id] = partitioner(execution_id.encode(), numbers, numbers)
            identity = execution_id, record.namespace, record.name
            last[assigned[execution_id]] = identity, record.last_timestamp
        return cls(counts, dict(last.values()))


@dataclass(frozen=True)
class Sample:
    """One run. Seconds, MiB; CPU is of the whole run, its start included."""

    rate: float
    """Records a second from the first stored row to the last."""
    total: float
    cpu: float
    postgres_cpu: float
    peak: float
    missing: int
    """Occurrences, or rows if counts are not compared."""
    surplus: int


@dataclass
class Found:
    """The runs of one row, in the order of the rounds; `killed` are those with a SIGKILL."""

    title: str
    batch: str
    folds: bool
    samples: list[Sample] = field(default_factory=list)
    killed: list[Sample] = field(default_factory=list)


async def run(records: int, rounds: int, kill: bool, only: Sequence[str] = ()) -> Report:
    """Store one topic with each peer once a round, each time in a database of its own."""
    peers = [peer for peer in PEERS if not only or peer.key in only]
    found = {OURS: Found(TITLE, "", True)} | {
        peer.key: Found(peer.title, f"{peer.batch:,}", peer.folds) for peer in peers
    }
    by_key = {peer.key: peer for peer in peers}
    work = Work.of(recurring.records(records), PARTITIONS)
    progress = Progress(rounds * len(found) * (1 + kill))
    done = 0
    async with postgres() as server, broker() as kafka:
        progress.show(0, "runs; producing records")
        recurring.produce(kafka.settings, list(recurring.records(records)))
        if sum((await end_offsets(kafka.settings)).values()) != records:
            raise RuntimeError("some records are not in the topic")
        for number in range(rounds):
            # Every other round runs backwards: drift does not favour one of a pair.
            for key in list(found)[:: -1 if number % 2 else 1]:
                row = found[key]
                for samples in (row.samples, row.killed)[: 1 + kill]:
                    progress.show(done, f"runs; round {number + 1}, {row.title}")
                    samples.append(
                        await _sample(server, kafka, by_key.get(key), work, samples is row.killed)
                    )
                    done += 1
    progress.end()
    return report(found, work.counts, rounds, kill)


async def _sample(
    server: Postgres, kafka: Broker, peer: Peer | None, work: Work, kill: bool
) -> Sample:
    group = f"benchmark-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(dir=kafka.directory) as directory:
        async with databases.empty(server.administrator_url) as database:
            command, table = await _prepared(kafka, database, group, peer, Path(directory))
            async with administrator(server.administrator_url) as connection:
                # Otherwise this run would pay for writes that the last one left.
                await connection.execute("CHECKPOINT")
            connection = await asyncpg.connect(database.owner)
            try:
                folds = peer is None or peer.folds
                stored = _Stored(connection, table, work)
                return await _measured(server, command, stored, folds, kill)
            finally:
                await connection.close()


async def _prepared(
    kafka: Broker, database: Database, group: str, peer: Peer | None, directory: Path
) -> tuple[Command, str]:
    """Return the command of a run, and the table or view with its rows."""
    if peer is None:
        await consuming.migrate(database)
        settings = configured(
            kafka.settings, database_url=database.writer, group=group, management_port=0
        )
        variables = environment(settings, EXECUTION_EVENTS_LOG_FORMAT="json")
        return ((*THIS.command, "consumer"), variables), "ops.events_v1"
    connection = await asyncpg.connect(database.owner)
    try:
        await connection.execute(create_table(TABLE))
    finally:
        await connection.close()
    settings = kafka.settings
    job = Job(
        settings.kafka.bootstrap_servers, settings.kafka.topic, group, database.owner, peer.batch
    )
    return await peer.start(job, directory), TABLE


class _Stored:
    """The current content of one run's table."""

    def __init__(self, connection: asyncpg.Connection, table: str, work: Work) -> None:
        self._connection = connection
        self._table = table
        self.work = work
        self._last = tuple(zip(*work.last, strict=True)), list(work.last.values())

    async def rows(self) -> int:
        number: int = await self._connection.fetchval(f"SELECT count(*) FROM {self._table}")
        return number

    async def occurrences(self) -> int:
        number: int = await self._connection.fetchval(
            f"SELECT coalesce(sum(count), 0)::bigint FROM {self._table}"
        )
        return number

    async def any(self) -> bool:
        found: bool = await self._connection.fetchval(f"SELECT EXISTS (SELECT FROM {self._table})")
        return found

    async def half(self) -> bool:
        return await self.rows() * 2 >= len(self.work.counts)

    async def all(self) -> bool:
        """Return true if the last record of each partition is stored; each is stored in order."""
        identities, moments = self._last
        number: int = await self._connection.fetchval(
            f"""
            SELECT count(*) FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[])
                AS last(execution_id, namespace, name, moment)
            JOIN {self._table} AS event USING (execution_id, namespace, name)
            WHERE event.last_timestamp >= moment
            """,
            *identities,
            moments,
        )
        return number == len(moments)

    async def counts(self) -> Counts:
        return await recurring.stored(self._connection, self._table)


async def _measured(
    server: Postgres, command: Command, stored: _Stored, folds: bool, kill: bool
) -> Sample:
    arguments, variables = command
    records, rows = stored.work.counts.total(), len(stored.work.counts)
    service = Service(arguments, server.log("peer"), environment(None, **variables))
    begun, postgres_before = time.monotonic(), server.cpu
    cpu = peak = 0.0
    async with service:
        await _until(stored.any, service)
        first, at_first = time.monotonic(), await stored.rows()
        if kill:
            await _until(stored.half, service)
            pid = service.process.pid
            cpu, peak = usage.cpu(pid), usage.memory(pid, "VmHWM")
            await service.stop(SIGKILL)
            await service.start()
        await _until(stored.all, service)
        end = time.monotonic()
        pid = service.process.pid
        cpu, peak = cpu + usage.cpu(pid), max(peak, usage.memory(pid, "VmHWM"))
        postgres_cpu = server.cpu - postgres_before
        if kill:
            await _at_rest(stored)
    missing, surplus = difference(stored.work.counts, await stored.counts(), folds)
    return Sample(
        rate=records * (1 - at_first / rows) / max(end - first, _POLL_INTERVAL),
        total=end - begun,
        cpu=cpu,
        postgres_cpu=postgres_cpu,
        peak=peak,
        missing=missing,
        surplus=surplus,
    )


async def _until(condition: Callable[[], Awaitable[bool]], service: Service) -> None:
    async with asyncio.timeout(_TIMEOUT):
        while not await condition():
            if service.process.returncode is not None:
                raise RuntimeError(f"the peer ended:\n{service.output}")
            await asyncio.sleep(_POLL_INTERVAL)


async def _at_rest(stored: _Stored) -> None:
    before = -1
    while before != (now := await stored.occurrences()):
        before = now
        await asyncio.sleep(_REST)


def difference(expected: Counts, found: Counts, folds: bool) -> tuple[int, int]:
    """Return the numbers of missing and surplus occurrences, or of rows if counts are not added."""
    if folds:
        return (expected - found).total(), (found - expected).total()
    return len(expected.keys() - found.keys()), len(found.keys() - expected.keys())


def report(found: dict[str, Found], expected: Counts, rounds: int, kill: bool) -> Report:
    """Return the table of the samples."""
    records = expected.total()
    ours = [sample.rate for sample in found[OURS].samples]
    exact = [*found[OURS].samples, *found[OURS].killed]
    return Report(
        "peers",
        {"records": records, "rounds": rounds, "partitions": PARTITIONS, "kill": kill},
        (*COLUMNS, *(KILL_COLUMNS if kill else ())),
        [
            (*_row(row, ours, records), *(_kill_cells(row) if kill else ()))
            for row in found.values()
        ],
        (),
        _notes(expected, rounds, kill),
        {key: asdict(row) for key, row in found.items()},
        [
            f"{TITLE}: {sample.missing:,} occurrences missing, {sample.surplus:,} too many"
            for sample in exact
            if sample.missing or sample.surplus
        ],
    )


def _row(row: Found, ours: Sequence[float], records: int) -> tuple[str, ...]:
    rates = [sample.rate for sample in row.samples]
    spread = Spread.of(rates)
    return (
        row.title,
        row.batch,
        short(round(spread.median)),
        short(round(spread.least)),
        short(round(spread.greatest)),
        f"{ratio(rates, ours).median:.2f}" if all(ours) else "",
        short(round(median(sample.total for sample in row.samples), 1)),
        f"{median(sample.cpu for sample in row.samples) / records * 1e6:.1f}",
        f"{median(sample.postgres_cpu for sample in row.samples) / records * 1e6:.1f}",
        f"{math.ceil(max(sample.peak for sample in row.samples))}",
        _counts(row),
    )


def _counts(row: Found) -> str:
    wrong = sum(sample.missing + sample.surplus for sample in row.samples)
    if not row.folds:
        return f"not kept, {wrong:,} rows wrong" if wrong else "not kept: last write wins"
    return f"{wrong:,} wrong" if wrong else "exact"


def _kill_cells(row: Found) -> tuple[str, ...]:
    missing = sum(sample.missing for sample in row.killed)
    surplus = sum(sample.surplus for sample in row.killed)
    if not row.folds:
        return f"{len(row.killed)}", "not kept", f"{missing:,} rows"
    return f"{len(row.killed)}", f"{surplus:,}", f"{missing:,}"


def _notes(expected: Counts, rounds: int, kill: bool) -> list[str]:
    records, events = expected.total(), len(expected)
    notes = [
        f"Medians of {rounds} rounds. Each run is one process and stores the same {records:,}"
        f" records of {events:,} events, {1 - events / records:.0%} of them recurrences, from"
        f" {PARTITIONS} partitions, in a database of its own after a checkpoint.",
        "The consumer keeps offsets, watermarks, executions and refused records in the same"
        " transactions; the others write one plain table of 14 columns with its primary key, and"
        " commit offsets to Kafka afterwards.",
        "A rate covers the time from the first observed row to the last record of each partition"
        " and leaves out the rows of the first observation. `total seconds` and CPU include the"
        " start. PostgreSQL with default durability (fsync, synchronous_commit).",
        "FastStream: batches through asyncpg, orjson and uvloop, types not applied, log off,"
        " offsets committed after the rows; counts are added, the last write wins elsewhere.",
        "Quix Streams: its sink writes each checkpoint, one transaction a partition, and replaces"
        " rows: occurrences are not counted.",
        "Debezium: one task of its JDBC sink on a standalone worker of Kafka Connect, upsert with"
        " UNNEST and the reduction buffer; it replaces rows: occurrences are not counted.",
    ]
    if kill:
        notes.append(
            "Kills: as many more runs, each with one SIGKILL once half of the rows are stored and"
            " an immediate restart; occurrences are summed over those runs."
        )
    return notes
