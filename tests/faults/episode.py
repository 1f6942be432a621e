"""One episode: load, consumers, one fault, recovery, and the oracle's verdict."""

import asyncio
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tests.faults.author import Author
from tests.faults.brokers import Brokers
from tests.faults.cluster import Cluster
from tests.faults.consumers import Consumer
from tests.faults.database import EpisodeDatabase, PipelineRow, cloned
from tests.faults.load import Load, Publisher, Worker
from tests.faults.oracle import Acknowledged, Verdict, judge
from tests.faults.own_postgres import OwnPostgres, own_postgres
from tests.faults.record import LogPosition, LogRecord
from tests.faults.source import Source
from tests.faults.topic import Topic
from tests.faults.transactions import TransactionalWorker
from tests.faults.watch import Watch
from tests.support.spooling_worker import Journal

PARTITIONS = 6
RECOVERY_LIMIT = 60
"""Seconds from the end of the fault until everything is stored."""
REPORT_LIMIT = 15
"""Seconds from then until the pipeline's view shows it."""
SESSION_TIMEOUT = 6  # seconds
MAX_POLL_INTERVAL = 15  # seconds
START_LIMIT = 60
"""Seconds until the first batch is stored, before any fault."""
WORKERS = 2
RATE = 150.0
"""Records per second of one worker."""
DATABASE_URL = "EXECUTION_EVENTS_DATABASE_URL"
FAILED_LOGS = Path(tempfile.gettempdir(), "execution-events-faults")
"""Directory for the consumers' logs of failed episodes."""


class NoFaultError(Exception):
    """The fault did not happen, so the episode proves nothing."""


class Server(Enum):
    """A server behind a proxy."""

    KAFKA = "kafka"
    POSTGRES = "postgres"


@dataclass(frozen=True)
class Row:
    """One row of the fault matrix.

    - `fault` injects the fault and returns when it is over.
    - `proxied`: the consumers connect to this server through its proxy; with `worker_proxied`, the
      fault's own worker does instead.
    - `alone`: the fault affects every episode on the same servers.
    - `settings`: environment variables of the episode's processes.
    - `worker_for_each_partition`: a stalled partition delays no record of another.
    - `own_postgres`: the episode has a PostgreSQL server of its own, with a proxy.
    - `missing` returns the reason why the row cannot run on this machine or source, else None.
    """

    name: str
    title: str
    episodes: int
    fault: Callable[["Episode"], Awaitable[None]]
    brokers: int = 1
    consumers: int = 2
    proxied: Server | None = None
    worker_proxied: bool = False
    alone: bool = False
    transactions: bool = False
    small_disk: bool = False
    poison: float = 0.0
    first_fail_point: Callable[[random.Random], str] | None = None
    replication: int | None = None
    """The topic's replication factor, None for the number of brokers."""
    worker_for_each_partition: bool = False
    own_postgres: bool = False
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)
    is_long: bool = False
    """Excluded from short runs: an episode takes a minute or more."""
    missing: Callable[[Source], str | None] = lambda source: None


@dataclass(frozen=True)
class Outcome:
    """The outcome of one episode. `recovery` is in seconds, None without recovery."""

    row: str
    seed: int
    recovery: float | None
    verdict: Verdict | None
    violations: list[str]
    evidence: dict[str, object]
    seconds: float
    vacuous: bool
    """The fault did not happen: a violation that says nothing about the product."""


@dataclass
class Episode:
    """The running episode that a row's fault acts on."""

    row: Row
    seed: int
    cluster: Cluster
    brokers: Brokers
    source: Source
    topic: Topic
    database: EpisodeDatabase
    directory: Path
    on_phase: Callable[[str], None]
    rng: random.Random
    stack: AsyncExitStack
    """Closed after the consumers have ended."""
    own_postgres: OwnPostgres | None = None
    consumers: list[Consumer] = field(default_factory=list)
    evidence: dict[str, object] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    inconclusive: str | None = None
    """The reason why the fault did not happen; a violation found by the oracle comes first."""
    lost: dict[int, range] = field(default_factory=dict)
    """Offsets of each partition that the log lost before they were stored."""
    audited: bool = True
    """False once the log was replaced: its offsets then mean other records."""
    seen: dict[LogPosition, LogRecord] = field(default_factory=dict)
    """Records read from the log so far, also those that it has lost since."""
    acknowledged: list[Acknowledged] = field(default_factory=list)
    """Records acknowledged to the fault's own workers."""
    published: Journal = field(default_factory=lambda: Journal({}, {}))
    """The journal of a worker with a spool."""
    disk: Path | None = None
    healed_at: float = 0.0
    load: Load = field(init=False)
    watch: Watch = field(init=False)

    @property
    def group(self) -> str:
        """The consumers' group; it has the topic's name."""
        return self.topic.name

    def healed(self) -> None:
        """Begin to measure recovery; by default this happens when the fault returns."""
        self.healed_at = time.monotonic()

    def new_consumer(self, database_port: int | None = None) -> Consumer:
        """Add a consumer without starting it; `database_port` replaces its PostgreSQL port."""
        name = f"consumer-{len(self.consumers) + 1}"
        environment = self.environment()
        if database_port is not None:
            environment[DATABASE_URL] = self.database.writer_url(database_port)
        consumer = Consumer(name, environment, self.directory / f"{name}.log")
        self.consumers.append(consumer)
        return consumer

    async def until(
        self, condition: Callable[[], Awaitable[bool]], limit: float, what: str
    ) -> None:
        """Return once `condition` holds; raise `NoFaultError` after `limit` seconds."""
        try:
            async with asyncio.timeout(limit):
                while not await condition():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise NoFaultError(f"timed out after {limit:g} s: {what}") from None

    async def seconds_until(
        self, condition: Callable[[], Awaitable[bool]], limit: float
    ) -> float | None:
        """Return the seconds until `condition` holds, None if they exceed `limit`."""
        started = time.monotonic()
        try:
            await self.until(condition, limit, "in time")
        except NoFaultError:
            return None
        return round(time.monotonic() - started, 1)

    async def stored(self) -> int:
        """Return the sum of all stored offsets, 0 while PostgreSQL is unavailable."""
        return sum((await self.database.progress() or {}).values())

    async def until_moving(self, more: int = 200, limit: float = START_LIMIT) -> None:
        """Return once `more` further records are stored."""
        before = await self.stored()

        async def moved() -> bool:
            return await self.stored() >= before + more

        await self.until(moved, limit, f"{more} more records are stored")

    async def until_joined(self) -> None:
        """Return once the group is stable and has every consumer as a member."""

        async def joined() -> bool:
            return len(await self.topic.members(self.group)) == len(self.consumers)

        await self.until(joined, START_LIMIT, f"{len(self.consumers)} consumers in the group")

    async def until_caught_up(self, limit: float) -> dict[int, int]:
        """Return the log's ends once they equal the stored offsets.

        With transactions, a partition ends with a control record, perhaps after aborted records:
        the stored offset must pass both.
        """
        deadline = time.monotonic() + limit
        while True:
            ends = await self.topic.ends()
            while (progress := await self.database.progress()) != ends:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"stored {progress}, the log ends at {ends}")
                await asyncio.sleep(0.1)
            # While a transaction is open, records follow beyond the last stable offset.
            if await self.topic.ends() == await self.topic.high_watermarks() == ends:
                return ends
            if time.monotonic() > deadline:
                raise TimeoutError(f"a transaction is still open after {ends}")

    async def until_reported(self, ends: Mapping[int, int]) -> None:
        """Return once `ops.pipeline_v1` shows the log's ends, without lag or a halted partition."""

        async def reported() -> bool:
            rows = await self.database.pipeline()
            return rows == {
                partition: PipelineRow(end, end, 0, None) for partition, end in ends.items()
            }

        await self.until(reported, REPORT_LIMIT, f"the pipeline's view shows {ends}")

    async def note_log(self) -> None:
        """Remember the records that the log holds now."""
        self.seen |= {record.position: record for record in await self.topic.records()}

    def has_lost(self, position: LogPosition) -> bool:
        """Return True if the log lost the record at `position` before it was stored."""
        partition, offset = position
        return offset in self.lost.get(partition, ())

    async def command(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Run `execution-events` with the consumers' settings; return its exit code and output.

        `variables` override the consumers' environment.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "execution_events.cli", *arguments),
            env=self.environment() | variables,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    @staticmethod
    def has_time_limits(source: Source) -> bool:
        """Return True if the consumer's session timeout and max poll interval are settings."""
        return source.mentions("max_poll_interval:")

    def environment(self) -> dict[str, str]:
        """Return the environment of a process of the product."""
        kafka, port = self.brokers.bootstrap_servers, self.cluster.postgres.port
        proxied = None if self.row.worker_proxied else self.row.proxied
        if proxied is Server.KAFKA:
            kafka = self.brokers.proxied_servers
        elif proxied is Server.POSTGRES:
            port = self.cluster.postgres_proxy.port
        if self.own_postgres is not None:
            port = self.own_postgres.proxy.port
        variables = {
            "EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS": kafka,
            "EXECUTION_EVENTS_TOPIC": self.topic.name,
            "EXECUTION_EVENTS_GROUP": self.group,
            DATABASE_URL: self.database.writer_url(port),
            # Many small transactions give a fault many points to hit.
            "EXECUTION_EVENTS_BATCH_MAX_RECORDS": "100",
            "EXECUTION_EVENTS_STOP_TIMEOUT": "10",
        }
        if self.has_time_limits(self.source):
            variables["EXECUTION_EVENTS_SESSION_TIMEOUT"] = str(SESSION_TIMEOUT)
            variables["EXECUTION_EVENTS_MAX_POLL_INTERVAL"] = str(MAX_POLL_INTERVAL)
        return self.source.environment() | variables | dict(self.row.settings)


async def run_episode(
    cluster: Cluster, source: Source, row: Row, seed: int, on_phase: Callable[[str], None]
) -> Outcome:
    """Run one episode of `row` and judge it; errors become violations of the outcome."""
    started = time.monotonic()
    recovery: float | None = None
    verdict: Verdict | None = None
    vacuous = False
    async with _prepared(cluster, source, row, seed, on_phase) as episode:
        try:
            recovery, verdict = await _run(episode)
        except NoFaultError as error:
            vacuous = True
            episode.violations.append(f"the fault did not happen: {error}")
        except TimeoutError as error:
            episode.violations.append(f"no recovery within {RECOVERY_LIMIT} s: {error}")
        except Exception as error:
            episode.violations.append(f"the episode failed: {type(error).__name__}: {error}")
        finally:
            await asyncio.gather(*(consumer.close() for consumer in episode.consumers))
        if verdict is not None:
            episode.violations += verdict.differences
        for consumer in episode.consumers:
            if codes := consumer.unexpected_exits():
                episode.violations.append(f"{consumer.name} exited unexpectedly with {codes}")
        if episode.inconclusive is not None and not episode.violations:
            vacuous = True
            episode.violations.append(f"the fault did not happen: {episode.inconclusive}")
        if episode.violations:
            logs = FAILED_LOGS / f"{row.name}-{seed}"
            shutil.rmtree(logs, ignore_errors=True)
            shutil.copytree(episode.directory, logs)
        return Outcome(
            row.name,
            seed,
            recovery,
            verdict,
            episode.violations,
            episode.evidence | {"exits": [consumer.exits for consumer in episode.consumers]},
            time.monotonic() - started,
            vacuous,
        )


@asynccontextmanager
async def _prepared(
    cluster: Cluster, source: Source, row: Row, seed: int, on_phase: Callable[[str], None]
) -> AsyncIterator[Episode]:
    on_phase("preparing")
    brokers = await cluster.brokers(row.brokers)
    async with AsyncExitStack() as stack:
        disk = await stack.enter_async_context(cluster.small_disk()) if row.small_disk else None
        own = await stack.enter_async_context(own_postgres(source)) if row.own_postgres else None
        database = (
            own.database
            if own is not None
            else await stack.enter_async_context(
                cloned(cluster.postgres, cluster.template, disk.tablespace if disk else None)
            )
        )
        name = f"faults-{row.name}-{seed}-{secrets.token_hex(2)}"
        topic = Topic(brokers.bootstrap_servers, name, row.replication or row.brokers)
        await topic.create(PARTITIONS)
        stack.push_async_callback(topic.delete)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="episode-")))
        episode = Episode(
            row,
            seed,
            cluster,
            brokers,
            source,
            topic,
            database,
            directory,
            on_phase,
            random.Random(f"{row.name}/{seed}"),
            stack,
            own,
        )
        if disk is not None:
            episode.disk = disk.path
        yield episode


async def _run(episode: Episode) -> tuple[float, Verdict]:
    row = episode.row
    # A worker for each partition sends only the messages of its partition.
    chosen = range(PARTITIONS) if row.worker_for_each_partition else [None] * WORKERS
    workers: list[Publisher] = [
        Worker(
            Author(episode.seed, number, row.poison),
            episode.brokers.bootstrap_servers,
            episode.topic.name,
            RATE if partition is None else RATE * WORKERS,
            partition,
        )
        for number, partition in enumerate(chosen)
    ]
    transactional = TransactionalWorker(
        Author(episode.seed, WORKERS),
        episode.brokers.bootstrap_servers,
        episode.topic.name,
        random.Random(f"transactions/{episode.seed}"),
    )
    if row.transactions:
        workers.append(transactional)
    async with Watch(episode.database) as watch, Load(workers) as load:
        episode.load, episode.watch = load, watch
        episode.on_phase("starting")
        point = row.first_fail_point(episode.rng) if row.first_fail_point is not None else None
        for number in range(row.consumers):
            await episode.new_consumer().start(point if number == 0 else None)
        if point is None:
            await episode.until_joined()
            await episode.until_moving()
        else:
            episode.evidence["fail point"] = point
        episode.on_phase("fault")
        await row.fault(episode)
        if not episode.healed_at:
            episode.healed()
        episode.on_phase("recovering")
        # Some records follow the fault, so that recovery does not depend on its last batch.
        await asyncio.sleep(0.3)
        await load.stop()
        left = RECOVERY_LIMIT - (time.monotonic() - episode.healed_at)
        ends = await episode.until_caught_up(max(left, 1))
        recovery = time.monotonic() - episode.healed_at
        await episode.until_reported(ends)
        episode.on_phase("stopping")
        for code in await asyncio.gather(*(c.stop() for c in episode.consumers)):
            if code != 0:
                episode.violations.append(f"a consumer's exit code after SIGTERM is {code}")
        # Only now, so that no late batch can follow the snapshot.
        stored = await episode.database.snapshot()
    episode.on_phase("judging")
    await episode.note_log()
    records = [
        record
        for position, record in sorted(episode.seen.items())
        if not episode.has_lost(position)
    ]
    promises = load.acknowledged + episode.acknowledged
    # If the log lost the first copy, a later sequence may have overtaken the second.
    lost = {
        promise._replace(position=(0, 0))
        for promise in promises
        if episode.has_lost(promise.position)
    }
    acknowledged = [
        promise
        for promise in promises
        if not episode.has_lost(promise.position)
        and (promise.source is None or promise._replace(position=(0, 0)) not in lost)
    ]
    if row.transactions:
        episode.evidence["transactions"] = str(transactional)
        episode.evidence["aborted records"] = aborted = len(await episode.topic.aborted())
        if not aborted or not transactional.committed:
            episode.inconclusive = "no transaction was committed, or no record aborted"
    if not watch.polls:
        episode.violations.append("the counts were never polled")
    episode.violations += [f"seen by a reader: {each}" for each in watch.decreases[:20]]
    episode.evidence["polls"] = watch.polls
    return recovery, judge(
        records,
        stored,
        ends,
        acknowledged,
        published=episode.published,
        audited=episode.audited,
    )
