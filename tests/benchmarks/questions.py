"""Time of the README's questions to PostgreSQL over a day of stored events, while more arrive."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import chain, count, islice
from typing import Any, NamedTuple

import msgspec

from execution_events.cli.progress import Progress
from execution_events.events import Occurrence
from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.reports import PartitionReport, ReportWriter
from tests.benchmarks import filler, servers
from tests.benchmarks.dataset import settle
from tests.benchmarks.figures import Verdict, percentile, short
from tests.benchmarks.growth_report import SERVER
from tests.benchmarks.report import Report
from tests.support import records
from tests.support.databases import Database, administrator
from tests.support.day import EVENTS_OF_AN_EXECUTION, Day
from tests.support.questions import QUESTIONS

BAR, LARGE_BAR = 300, 1000
"""p95 in milliseconds, up to a million stored events and above."""
_MILLION = 1_000_000
"""Events that are stored through the product; more of them are copies."""
_WARM_UP = 3
"""Runs of each question that are not measured."""
_RATE, _BATCH = 500, 50
"""Events that arrive in a second, and in one transaction."""
_TOPIC = "questions"
"""Topic of the stored records; it does not exist in Kafka."""
_PARTITIONS = 12

_COLUMNS = """
SELECT string_agg(quote_ident(attname), ', ')
FROM pg_attribute
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
    AND attname <> 'execution_id'
"""
# Of other executions at the same times. `element_hash`, by which a writer finds the events of an
# element, stays that of the original: nothing is written to the copies.
_COPY = """
INSERT INTO {table} (execution_id, {columns})
SELECT md5(execution_id || copy)::uuid::text, {columns}
FROM generate_series(1, {copies}) AS copy, {table}
"""
_SPREAD_CREATION = """
UPDATE execution_events.execution SET created_at = first_timestamp, changed_at = last_timestamp
"""
_RATES = """
INSERT INTO execution_events.event_rate
SELECT minute, $1, partition, 40, 50, 1
FROM generate_series(
    date_trunc('minute', now() - interval '14 days'), now() - interval '1 minute', '1 minute'
) AS minute, generate_series(0, $2 - 1) AS partition
"""
_LETTERS = """
INSERT INTO execution_events.dead_letter (
    topic, partition, record_offset, record_timestamp, key, value, header_names, header_values,
    reason, detail, refused_at, retried_at
)
SELECT
    $1, number % $2, number, 0, 'key', convert_to(repeat(md5(number::text), 30), 'UTF8'),
    '{}', '{}',
    'not_json', 'the value is not JSON', now() - number * interval '1 second',
    CASE WHEN number % 50 > 0 THEN now() END
FROM generate_series(1, 100000) AS number
"""

COLUMNS = ("Question", "rows", "p50 ms", "p95 ms", "max ms")


class Answers(NamedTuple):
    """The times of one question in seconds, the rows of its last answer, and its plan."""

    seconds: list[float]
    rows: int
    plan: list[str]


async def run(events: int, tenants: Sequence[int], failures: Sequence[float], runs: int) -> Report:
    """Ask each question `runs` times, for each number of tenants and percentage of failures."""
    rows: list[list[str]] = []
    verdicts: list[Verdict] = []
    notes: list[str] = []
    figures: dict[str, Any] = {}
    broken: list[str] = []
    bar = BAR if events <= _MILLION else LARGE_BAR
    async with servers.postgres(**SERVER) as server:
        for number, percent in ((n, p) for n in tenants for p in failures):
            title = f"{number} tenants, {short(percent)} % failures"
            now = datetime.now(UTC)
            executions = max(1, min(events, _MILLION) // EVENTS_OF_AN_EXECUTION)
            day = Day(executions, now, number, percent / 100)
            copies = max(0, round(events / _MILLION) - 1)
            async with (
                _stored(server, day, copies) as (database, stored),
                _arriving(database, day) as sent,
            ):
                begun = time.monotonic()
                answers = await _asked(database, runs)
                rate = len(sent) * _BATCH / (time.monotonic() - begun)
            notes.append(f"{title}: {stored:,} events stored, {rate:.0f} a second arrived")
            rows.append([title, "", "", "", ""])
            for question, answer in answers.items():
                p95 = percentile(answer.seconds, 95) * 1000
                rows.append(
                    [
                        question,
                        str(answer.rows),
                        short(percentile(answer.seconds, 50) * 1000),
                        short(p95),
                        short(max(answer.seconds) * 1000),
                    ]
                )
                verdicts.append(Verdict(f"{title}: {question}", p95, bar, "ms", at_most=True))
            broken += [
                f"{title}: no answer to: {question}"
                for question, answer in answers.items()
                if not answer.rows
            ]
            figures[title] = {
                question: {"seconds": answer.seconds, "rows": answer.rows, "plan": answer.plan}
                for question, answer in answers.items()
            }
    parameters = {"events": events, "tenants": list(tenants), "failures": list(failures)}
    return Report(
        "questions", parameters | {"runs": runs}, COLUMNS, rows, verdicts, notes, figures, broken
    )


@asynccontextmanager
async def _stored(
    server: servers.Postgres, day: Day, copies: int
) -> AsyncIterator[tuple[Database, int]]:
    """Create a database with a day of events and `copies` of it, rates, reports and letters."""
    async with server.database() as database:
        stored = await filler.fill(day, database.writer)
        async with (
            ReportWriter(database.writer, _TOPIC, "client@host") as reports,
            administrator(database.administrator) as connection,
        ):
            await connection.execute("SET search_path = execution_events")
            for table in ("event", "execution", "action"):
                columns = await connection.fetchval(_COLUMNS, table)
                await connection.execute(_COPY.format(table=table, columns=columns, copies=copies))
            stored *= 1 + copies
            await connection.execute(_SPREAD_CREATION)
            await connection.execute(_RATES, _TOPIC, _PARTITIONS)
            await connection.execute(_LETTERS, _TOPIC, _PARTITIONS)
            await reports.write([PartitionReport(p, 0, 0.5, None) for p in range(_PARTITIONS)])
        await settle(database)
        yield database, stored


@asynccontextmanager
async def _arriving(database: Database, day: Day) -> AsyncIterator[list[int]]:
    """Store `_RATE` events a second in further executions; yields the sizes of the batches."""
    sent: list[int] = []

    async def arrive() -> None:
        further = chain.from_iterable(map(day.of_execution, count(day.executions)))
        async with BatchWriter(database.writer, _TOPIC) as writer:
            await writer.begin_partition(0, 0, "cluster")
            due = time.monotonic()
            while True:
                occurrences = list(_dated(islice(further, _BATCH)))
                begin = len(sent) * _BATCH
                await writer.store(records.batch(records.log(occurrences, begin=begin)))
                sent.append(_BATCH)
                due += _BATCH / _RATE
                await asyncio.sleep(max(0, due - time.monotonic()))

    arriving = asyncio.create_task(arrive())
    try:
        yield sent
    finally:
        arriving.cancel()
        with suppress(asyncio.CancelledError):
            await arriving


def _dated(occurrences: Iterator[Occurrence]) -> Iterator[Occurrence]:
    now = datetime.now(UTC)
    for each in occurrences:
        yield msgspec.structs.replace(each, first_timestamp=now, last_timestamp=now)


async def _asked(database: Database, runs: int) -> dict[str, Answers]:
    """Ask each question in turn, as the role of operators."""
    progress = Progress(runs * len(QUESTIONS))
    answers: dict[str, Answers] = {}
    async with administrator(database.ops) as connection:
        for question, sql in QUESTIONS.items():
            seconds = []
            for _ in range(_WARM_UP + runs):
                begun = time.perf_counter()
                rows = await connection.fetch(sql)
                seconds.append(time.perf_counter() - begun)
                progress.show(runs * len(answers) + len(seconds), "answers")
            plan = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {sql}")
            answers[question] = Answers(seconds[_WARM_UP:], len(rows), [row[0] for row in plan])
    progress.end()
    return answers
