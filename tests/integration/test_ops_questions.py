"""The README's questions and a dashboard's, as the role of operators: rows, and plans by index."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.reports import PartitionReport, ReportWriter
from tests.support import filling
from tests.support.databases import Database, administrator, cloned
from tests.support.day import TENANT, Day
from tests.support.questions import QUESTIONS
from tests.support.records import batch, log, occurrence
from tests.support.servers import Servers

EXECUTIONS = 300


@pytest.fixture(scope="module")
async def filled(servers: Servers, template_database: str) -> AsyncIterator[Database]:
    """A database with a day of executions that no test changes."""
    async with cloned(servers.administrator_url, template_database) as database:
        day = Day(EXECUTIONS, datetime.now(UTC), tenants=3)
        async with (
            administrator(database.owner) as owner,
            BatchWriter(database.writer, "events") as writer,
            ReportWriter(database.writer, "events", "client@host") as reports,
        ):
            await filling.write(owner, day.occurrences())
            await owner.execute("UPDATE execution SET created_at = first_timestamp")
            await writer.begin_partition(0, 0, "cluster")
            await writer.store(batch(log([occurrence(), *[b"not json"] * 20])))
            await reports.write([PartitionReport(0, 30, 0, None)])
            # Rows that do not belong to the answers, as in a database in use.
            await owner.execute(
                "INSERT INTO event_rate"
                " SELECT now() - number * interval '1 minute', 'events', 0, 1, 1, 0"
                " FROM generate_series(1, 14 * 1440) AS number"
            )
            await owner.execute(
                "INSERT INTO dead_letter (topic, partition, record_offset, record_timestamp,"
                " header_names, header_values, reason, detail, refused_at, discarded_at)"
                " SELECT 'events', 0, n, 0, '{}', '{}', 'not_json', '', now(), now()"
                " FROM generate_series(1, 2000) AS n"
            )
        async with administrator(database.administrator) as connection:
            await connection.execute("VACUUM ANALYZE")
        yield database


@pytest.fixture
async def ops(filled: Database) -> AsyncIterator[asyncpg.Connection]:
    async with administrator(filled.ops) as connection:
        yield connection


async def plan(ops: asyncpg.Connection, sql: str) -> list[dict[str, Any]]:
    """Return the nodes of a statement's plan."""
    return list(_nodes(json.loads(await ops.fetchval(f"EXPLAIN (FORMAT JSON) {sql}"))[0]["Plan"]))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def scanned(nodes: list[dict[str, Any]]) -> set[str]:
    """Return the tables that the plan reads from begin to end."""
    return {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}


def indexes(nodes: list[dict[str, Any]]) -> set[str]:
    """Return the indexes of a plan; of few failures, either index of them costs the same."""
    found = {node["Index Name"] for node in nodes if "Index Name" in node}
    return found | ({"action_failed"} if "action_first_failed" in found else set())


INDEXES = {
    "The newest executions": {"execution_created", "action_first_failed"},
    "Executions of the last day that failed": {"execution_failed", "action_first_failed"},
    "The newest executions of one tenant": {"execution_tenant"},
    "Actions that run, the longest": {"action_running"},
    "Actions that run and have been quiet": {"action_running", "action_duration"},
    "The elements that failed most often": {"action_failed"},
    "The causes of a day's failures": {"action_failed"},
    "Durations by type": {"action_duration"},
    "The actions retried most often": {"action_retried"},
    "Occurrences a minute": {"event_rate_pkey"},
    "Each partition's lag": set(),
    "Refused records": {"dead_letter_open"},
}
"""The indexes that answer a question, by the begin of its sentence."""


def beginning(question: str) -> str:
    """Return the longest key of `INDEXES` that the question begins with."""
    return max((each for each in INDEXES if question.startswith(each)), key=len)


def test_the_readme_asks_at_least_ten_questions() -> None:
    assert len(QUESTIONS) >= 10
    assert [beginning(question) for question in QUESTIONS] == list(INDEXES)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_question_has_an_answer(ops: asyncpg.Connection, question: str) -> None:
    assert await ops.fetch(QUESTIONS[question])


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_question_scans_neither_events_nor_actions(
    ops: asyncpg.Connection, question: str
) -> None:
    assert scanned(await plan(ops, QUESTIONS[question])).isdisjoint({"event", "action"})


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_question_is_answered_by_its_index(ops: asyncpg.Connection, question: str) -> None:
    """Small tables are scanned in any case, unless it is forbidden."""
    await ops.execute("SET enable_seqscan = off")
    nodes = await plan(ops, QUESTIONS[question])
    assert indexes(nodes) >= INDEXES[beginning(question)]
    assert scanned(nodes) <= {"partition_progress", "partition_report"}


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_question_takes_one_process(ops: asyncpg.Connection, question: str) -> None:
    """A parallel scan of all actions would be chosen where few of them run."""
    for setting in ("min_parallel_table_scan_size", "parallel_setup_cost", "parallel_tuple_cost"):
        await ops.execute(f"SET {setting} = 0")
    nodes = await plan(ops, QUESTIONS[question])
    assert not [node for node in nodes if node["Node Type"].startswith("Gather")]


async def test_usual_durations_are_computed_once_for_each_kind(ops: asyncpg.Connection) -> None:
    nodes = await plan(ops, "SELECT * FROM ops.quiet_v1")
    assert "Memoize" in {node["Node Type"] for node in nodes}


async def test_the_answers_agree_with_the_events(ops: asyncpg.Connection) -> None:
    """Failures of the day, counted from the events alone."""
    counted = await ops.fetch(
        "SELECT namespace, elem_type, elem_id, count(*) FROM ops.events_v1"
        " WHERE reason_code = 'ActionFailed' GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT 10"
    )
    question = next(q for q in QUESTIONS if q.startswith("The elements that failed"))
    answer = await ops.fetch(QUESTIONS[question])
    assert [row["failures"] for row in answer] == [row[3] for row in counted]


# Grafana's PostgreSQL data source replaces macros and variables in the text, as here.

NAMESPACES = f"'{TENANT}','tenant-1'"
"""A variable with several values."""


def expanded(sql: str, since: datetime, until: datetime) -> str:
    begin, end = (f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z" for moment in (since, until))
    group = r"floor(extract(epoch from \1)/300)*300"
    for pattern, replacement in (
        (r"\$__timeGroupAlias\((\w+), *'?5m'?\)", rf'{group} AS "time"'),
        (r"\$__timeGroup\((\w+), *'?5m'?\)", group),
        (r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN '{begin}' AND '{end}'"),
        (r"\$__time\((\w+)\)", r'\1 AS "time"'),
        (r"\$namespace", NAMESPACES),
    ):
        sql = re.sub(pattern, replacement, sql)
    assert "$" not in sql
    return sql


PANELS = {
    "failures over time": (
        "SELECT $__timeGroupAlias(finished, '5m'), elem_type AS metric, count(*) AS failures"
        " FROM ops.failures_v1 WHERE $__timeFilter(finished) AND namespace IN ($namespace)"
        " GROUP BY 1, 2 ORDER BY 1",
        {"action_failed"},
    ),
    "executions by state": (
        "SELECT $__timeGroup(created_at, '5m') AS time, state, count(*)"
        " FROM ops.executions_v1 WHERE $__timeFilter(created_at) AND namespace IN ($namespace)"
        " GROUP BY 1, 2 ORDER BY 1",
        {"execution_created"},
    ),
    "durations in seconds": (
        "SELECT $__time(created_at), duration_seconds FROM ops.executions_v1"
        " WHERE $__timeFilter(created_at) ORDER BY 1",
        {"execution_created"},
    ),
    "actions of the executions in the range": (
        "SELECT a.elem_type, avg(a.duration_seconds) AS mean, max(a.duration_seconds) AS longest"
        " FROM ops.executions_v1 AS x JOIN ops.actions_v1 AS a USING (execution_id, namespace)"
        " WHERE $__timeFilter(created_at) AND namespace IN ($namespace) GROUP BY 1",
        {"execution_created", "action_pkey"},
    ),
    "occurrences": (
        "SELECT $__timeGroupAlias(minute, 5m), sum(occurrences) AS occurrences"
        " FROM ops.event_rate_v1 WHERE $__timeFilter(minute) GROUP BY 1 ORDER BY 1",
        {"event_rate_pkey"},
    ),
}
"""SQL of a panel as in Grafana, and the indexes that answer it."""


@pytest.mark.parametrize("panel", PANELS)
async def test_a_panel_of_grafana_is_answered_by_its_index(
    ops: asyncpg.Connection, panel: str
) -> None:
    text, by = PANELS[panel]
    now = datetime.now(UTC)
    sql = expanded(text, now - timedelta(hours=1), now)
    rows = await ops.fetch(sql)
    assert rows
    assert {type(value) for row in rows for value in row.values()} <= {
        *(float, int, str, datetime, type(rows[0][0])), type(None)
    }  # fmt: skip
    await ops.execute("SET enable_seqscan = off")
    nodes = await plan(ops, sql)
    assert indexes(nodes) & by == by, indexes(nodes)
    assert not scanned(nodes)


async def test_a_variable_of_grafana_lists_its_values(ops: asyncpg.Connection) -> None:
    rows = await ops.fetch("SELECT DISTINCT namespace FROM ops.executions_v1 ORDER BY 1")
    assert TENANT in {row[0] for row in rows}
