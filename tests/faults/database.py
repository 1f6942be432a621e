"""The databases of the episodes: a migrated template, a copy for each episode, and snapshots."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from execution_events.embedded import EmbeddedPostgres
from tests.faults.model import Fields, Identity
from tests.faults.proxy import HOST
from tests.faults.record import Headers, LogPosition
from tests.faults.source import Source
from tests.support import databases, states
from tests.support.databases import OWNER, PASSWORD

WRITER = "execution_events_writer"
_LOST = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


_WAITS = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND usename = $1 AND wait_event_type = 'Lock'
        AND state_change > clock_timestamp() - make_interval(secs => $2)
)
"""
_HOLDS_OFFSETS = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity JOIN pg_locks USING (pid)
    WHERE client_port = $1 AND wait_event = 'ClientRead' AND granted
        AND backend_xid IS NOT NULL
        AND relation = 'execution_events.partition_progress'::regclass
        AND mode IN ('RowShareLock', 'RowExclusiveLock')
)
"""
# A partition's first move seeds it and belongs to no batch.
_BATCHES_OF_THE_DEAD = """
SELECT count(DISTINCT transaction) FROM faults.move
WHERE before IS NOT NULL AND backend NOT IN (SELECT pid FROM pg_stat_activity)
"""

_AGE_SOURCES = """
UPDATE execution_events.producer_progress
SET changed_at = changed_at - make_interval(secs => $2)
WHERE source LIKE $1
RETURNING source
"""
_OMIT_PRUNE = """
DELETE FROM faults.touched
WHERE relation = 'producer_progress' AND transaction NOT IN (SELECT transaction FROM faults.move)
"""


class EventRow(NamedTuple):
    """One row of `event`; times in microseconds since the Unix epoch."""

    fields: Fields
    list_position: int
    first: int
    last: int
    occurrences: int


class ExecutionRow(NamedTuple):
    """One row of `execution`; times as in `EventRow`."""

    events: int
    occurrences: int
    first: int
    last: int


class LetterRow(NamedTuple):
    """One row of `dead_letter`."""

    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str


class RateRow(NamedTuple):
    """One partition's rows of `event_rate_v1`, added up."""

    records: int
    occurrences: int
    letters: int


class PipelineRow(NamedTuple):
    """One row of `pipeline_v1`; None for what is not known."""

    next_offset: int | None
    log_end: int | None
    lag: int | None
    halted: str | None


class OffsetMove(NamedTuple):
    """One change of a partition's stored offset; None before an insert and after a delete."""

    transaction: str
    partition: int
    before: int | None
    after: int | None


class Stored(NamedTuple):
    """A snapshot of everything the product wrote, with the audit of its transactions."""

    events: dict[Identity, EventRow]
    executions: dict[tuple[str, str], ExecutionRow]
    letters: list[tuple[LogPosition, LetterRow]]
    progress: dict[int, int]
    watermarks: dict[tuple[int, str], int]
    rates: dict[int, RateRow]
    pipeline: dict[int, PipelineRow]
    moves: list[OffsetMove]
    growth: dict[str, int]
    """Occurrences that each transaction added, over all events."""
    touched: set[str]
    """Transactions that wrote dead letters or watermarks."""
    states: list[str]
    """Differences of states from a recomputation from `events`."""


class EpisodeDatabase:
    """One episode's database, read as administrator over a connection without faults."""

    def __init__(self, administrator_url: str, name: str) -> None:
        self.name = name
        self.administrator_url = _with_path(administrator_url, name)

    def writer_url(self, port: int) -> str:
        """Return the consumers' URL, with `port`."""
        return f"postgresql://{WRITER}:{PASSWORD}@{HOST}:{port}/{self.name}"

    def move_to(self, administrator_url: str) -> None:
        """Read the database of the same name on another server from now on."""
        self.administrator_url = _with_path(administrator_url, self.name)

    def owner_url(self, port: int) -> str:
        """Return the owner's URL, for commands that the consumers' role may not run."""
        return f"postgresql://{OWNER}:{PASSWORD}@{HOST}:{port}/{self.name}"

    async def age_sources(self, pattern: str, seconds: float) -> int:
        """Make the watermarks of sources LIKE `pattern` older by `seconds`; return their number."""
        async with self.connect() as connection, connection.transaction():
            # Without triggers: the audit must see only the product's writes.
            await connection.execute("SET LOCAL session_replication_role = replica")
            aged = await connection.fetch(_AGE_SOURCES, pattern, seconds)
        return len(aged)

    async def omit_prune_from_audit(self) -> None:
        """Remove a prune of sources from the audit; no consumer may store anything meanwhile."""
        async with self.connect() as connection:
            await connection.execute(_OMIT_PRUNE)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[asyncpg.Connection]:
        """Open a connection as administrator."""
        connection = await asyncpg.connect(self.administrator_url, timeout=5, command_timeout=60)
        try:
            yield connection
        finally:
            connection.terminate()

    async def progress(self) -> dict[int, int] | None:
        """Return the stored offset of each partition, None while PostgreSQL is unavailable."""
        try:
            async with self.connect() as connection:
                return await _progress(connection)
        except _LOST:
            return None

    async def pipeline(self) -> dict[int, PipelineRow]:
        """Return the state of each partition, none while PostgreSQL is unavailable."""
        try:
            async with self.connect() as connection:
                return await _pipeline(connection)
        except _LOST:
            return {}

    async def writers_wait(self, begun_within: float = 3600) -> bool:
        """Return True if a consumer began to wait for a lock in the last `begun_within` seconds."""
        async with self.connect() as connection:
            waits: bool = await connection.fetchval(_WAITS, WRITER, begun_within)
            return waits

    async def holds_offsets(self, port: int) -> bool:
        """Return True if the session of the client at `port` is idle and locks stored offsets.

        A session becomes idle shortly after it has sent its last response.
        """
        async with self.connect() as connection:
            holds: bool = await connection.fetchval(_HOLDS_OFFSETS, port)
            return holds

    async def batches_of_the_dead(self) -> int:
        """Return the number of batches stored by sessions that have ended."""
        async with self.connect() as connection:
            batches: int = await connection.fetchval(_BATCHES_OF_THE_DEAD)
            return batches

    async def snapshot(self) -> Stored:
        """Return everything stored, in one snapshot."""
        async with (
            self.connect() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            return await _stored(connection)


async def template(postgres: EmbeddedPostgres, source: Source) -> str:
    """Create a database with the `migrate` of `source` and the audit; return its name."""
    name = await databases.provision(postgres.dsn(), "template")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "execution_events.cli", "migrate"),
        env=source.environment()
        | {
            "EXECUTION_EVENTS_DATABASE_URL": databases.urls(postgres.dsn(), name).owner,
            "EXECUTION_EVENTS_WRITER_PASSWORD": PASSWORD,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"migrate failed:\n{output.decode()}")
    async with EpisodeDatabase(postgres.dsn(), name).connect() as connection:
        await connection.execute((resources.files(__package__) / "audit.sql").read_text())
    return name


@asynccontextmanager
async def cloned(
    postgres: EmbeddedPostgres, template_name: str, tablespace: str | None = None
) -> AsyncIterator[EpisodeDatabase]:
    """Clone the template; drop the copy at the end."""
    name = await databases.clone(
        postgres.dsn(), template_name, "episode", tablespace or "pg_default"
    )
    try:
        yield EpisodeDatabase(postgres.dsn(), name)
    finally:
        await databases.drop(postgres.dsn(), name)


async def execute(url: str, statement: str) -> None:
    """Run one statement on a new connection."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _progress(connection: asyncpg.Connection) -> dict[int, int]:
    rows = await connection.fetch(
        "SELECT partition, next_offset FROM execution_events.partition_progress"
    )
    return {row["partition"]: row["next_offset"] for row in rows}


async def _pipeline(connection: asyncpg.Connection) -> dict[int, PipelineRow]:
    rows = await connection.fetch(
        "SELECT partition, next_offset, log_end_offset, lag, halted FROM ops.pipeline_v1"
    )
    return {partition: PipelineRow(*row) for partition, *row in rows}


async def _stored(connection: asyncpg.Connection) -> Stored:
    events = await connection.fetch(
        f"""
        SELECT execution_id, namespace, name, count, {_micros("list_position")},
            {_micros("first_timestamp")}, {_micros("last_timestamp")},
            ARRAY[object_name, reason, type, elem_type, elem_id, action_name] AS texts, body
        FROM execution_events.event
        """
    )
    executions = await connection.fetch(
        f"""
        SELECT execution_id, namespace, events, occurrences,
            {_micros("first_timestamp")}, {_micros("last_timestamp")}
        FROM execution_events.execution
        """
    )
    letters = await connection.fetch("SELECT * FROM execution_events.dead_letter ORDER BY id")
    sources = await connection.fetch(
        "SELECT partition, source, sequence FROM execution_events.producer_progress"
    )
    rates = await connection.fetch(
        "SELECT partition, sum(records)::bigint, sum(occurrences)::bigint,"
        " sum(dead_letters)::bigint FROM ops.event_rate_v1 GROUP BY partition"
    )
    moves = await connection.fetch(
        "SELECT transaction, partition, before, after FROM faults.move ORDER BY number"
    )
    growth = await connection.fetch(
        "SELECT transaction, sum(amount)::bigint AS amount FROM faults.growth GROUP BY transaction"
    )
    touched = await connection.fetch("SELECT DISTINCT transaction FROM faults.touched")
    return Stored(
        events={
            (row["execution_id"], row["namespace"], row["name"]): EventRow(
                _fields(row),
                row["list_position"],
                row["first_timestamp"],
                row["last_timestamp"],
                row["count"],
            )
            for row in events
        },
        executions={
            (row["execution_id"], row["namespace"]): ExecutionRow(
                row["events"], row["occurrences"], row["first_timestamp"], row["last_timestamp"]
            )
            for row in executions
        },
        letters=[((row["partition"], row["record_offset"]), _letter(row)) for row in letters],
        progress=await _progress(connection),
        watermarks={(row["partition"], row["source"]): row["sequence"] for row in sources},
        rates={partition: RateRow(*row) for partition, *row in rates},
        pipeline=await _pipeline(connection),
        moves=[OffsetMove(*row) for row in moves],
        growth={row["transaction"]: row["amount"] for row in growth},
        touched={row["transaction"] for row in touched},
        states=await states.differences(connection),
    )


def _fields(row: Any) -> tuple[str, ...]:
    """Return the fields of the body, which the API lists.

    Where the columns disagree with the body, the result equals no expected fields.
    """
    body = json.loads(row["body"])
    object_name, reason, kind, elem_type, elem_id, action = row["texts"]
    involved = body["involvedObject"]
    fields = (object_name, involved["namespace"], reason, body["message"], kind, elem_type)
    expected = {
        "metadata": {"name": row["name"], "namespace": row["namespace"]},
        "involvedObject": {"name": object_name, "namespace": involved["namespace"]},
        "reason": reason,
        "message": body["message"],
        "firstTimestamp": _seconds(row["first_timestamp"]),
        "lastTimestamp": _seconds(row["last_timestamp"]),
        "count": row["count"],
        "type": kind,
        "elemType": elem_type,
        "elemId": elem_id,
        "actionName": action,
    }
    return (*fields, elem_id, action) if body == expected else (f"{body} is not {expected}",)


def _seconds(micros: int) -> str:
    moment = datetime(1970, 1, 1) + timedelta(microseconds=micros)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _letter(row: Any) -> LetterRow:
    names = [name.decode() for name in row["header_names"]]
    return LetterRow(
        row["record_timestamp"],
        row["key"],
        row["value"],
        tuple(zip(names, row["header_values"], strict=True)),
        row["reason"],
    )


def _micros(column: str) -> str:
    return f"(extract(epoch FROM {column}) * 1000000)::bigint AS {column}"


def _with_path(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))
