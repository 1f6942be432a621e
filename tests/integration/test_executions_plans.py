"""A page of executions costs what it returns, at any depth and for any filter.

The plans are the generic ones that a reader uses, on a table without and with statistics.
"""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from execution_events.projection.states import STATES
from execution_events.store.read.executions import (
    ExecutionPosition,
    ExecutionSelection,
    page_statement,
    read_executions,
)
from execution_events.store.read.pool import ReadingPool
from execution_events.store.sessions import READER
from execution_events.store.sql import array_literal
from tests.support.databases import Database, administrator, cloned
from tests.support.executions import LARGE, SMALL, TENANTS, Execution, Executions, store
from tests.support.servers import Servers

EXECUTIONS = Executions(20_000, 0.0005, datetime(2026, 1, 1, tzinfo=UTC))
"""A few failures of 20 tenants; the small one has one or two of them."""
ALL = list(EXECUTIONS.descending())
LIMIT = 50
DEPTH = 15_000

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=["no statistics", "statistics", "one state and one tenant"])
async def filled(
    request: pytest.FixtureRequest, servers: Servers, template_database: str
) -> AsyncIterator[Database]:
    """A database with the executions; the last statistics are of others, as after a purge."""
    async with (
        cloned(servers.administrator_url, template_database, compare=False) as database,
        administrator(database.administrator) as owner,
    ):
        await owner.execute("ALTER TABLE execution_events.execution SET (autovacuum_enabled = off)")
        if request.param == "one state and one tenant":
            await store(owner, Executions(3000, 0, EXECUTIONS.newest))
            await owner.execute("UPDATE execution_events.execution SET namespace = 'tenant-x'")
            await owner.execute("ANALYZE execution_events.execution")
            # Deleted rows would be read in indexes until a vacuum, which changes the statistics.
            await owner.execute("TRUNCATE execution_events.execution")
        await store(owner, EXECUTIONS)
        if request.param == "statistics":
            await owner.execute("VACUUM ANALYZE")
        yield database


@pytest.fixture(scope="module")
async def pool(filled: Database) -> AsyncIterator[ReadingPool]:
    async with ReadingPool.open(filled.reader, "tests", 1, READER) as pool:
        yield pool


def position(depth: int) -> ExecutionPosition:
    """Return the key of the execution before which so many are newer."""
    return _key(ALL[depth])


def _key(execution: Execution) -> ExecutionPosition:
    return ExecutionPosition(execution.created_at, execution.execution_id, execution.namespace)


def expected(selection: ExecutionSelection, namespaces: frozenset[str] | None) -> list[Any]:
    """Return the keys of the page, found without an index."""
    found = [
        _key(each)
        for each in ALL
        if (namespaces is None or each.namespace in namespaces)
        and (
            not selection.states
            or ("failed" if each.is_failed else "succeeded") in selection.states
        )
        and (not selection.namespaces or each.namespace in selection.namespaces)
        and (not selection.object_names or each.object_name in selection.object_names)
        and (not selection.execution_ids or each.execution_id in selection.execution_ids)
        and (selection.since is None or each.created_at >= selection.since)
        and (selection.until is None or each.created_at < selection.until)
    ]
    if not selection.descending:
        found.reverse()
    if selection.after is not None:
        after = selection.after
        found = [each for each in found if (each < after) == selection.descending and each != after]
    return found[:LIMIT]


async def explained(
    connection: asyncpg.Connection, statement: str, arguments: Sequence[object]
) -> dict[str, Any]:
    """Return the plan that a prepared statement uses, executed."""
    await connection.execute(f"PREPARE asked AS {statement}")
    try:
        values = ", ".join(map(_literal, arguments))
        text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE asked({values})"
        [[explanation]] = (json.loads(await connection.fetchval(text)),)
    finally:
        await connection.execute("DEALLOCATE asked")
    plan: dict[str, Any] = explanation["Plan"]
    return plan


def _literal(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    text = value if isinstance(value, str) else array_literal(value) if value else "{}"  # type: ignore[arg-type]
    return "'{}'".format(text.replace("'", "''"))


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)


OF_FAILURES = {"action_first_failed", "event_pkey", "event_order"}
"""Indexes that find first failures; of a small table, either one of events costs the same."""
SOME = frozenset({LARGE, SMALL, "tenant-7", "absent"})
FAILED = ("failed", "timed_out")
CASES: dict[str, tuple[dict[str, Any], frozenset[str] | None, set[str]]] = {
    "all": ({}, None, {"execution_created"}),
    "all failed": ({"states": FAILED}, None, {"execution_tenant", "execution_state"}),
    "all of a state that none has": (
        {"states": ("cancelled",)},
        None,
        {"execution_tenant", "execution_state"},
    ),
    "an object of all": (
        {"object_names": ("dag-7",)},
        None,
        {"execution_tenant", "execution_object"},
    ),
    "a large tenant": ({}, frozenset({LARGE}), {"execution_tenant"}),
    "a small tenant": ({}, frozenset({SMALL}), {"execution_tenant"}),
    "a tenant without executions": ({}, frozenset({"absent"}), {"execution_tenant"}),
    "no tenant": ({}, frozenset(), {"execution_tenant"}),
    "some tenants": ({}, SOME, {"execution_tenant"}),
    "a tenant of all": ({"namespaces": (SMALL,)}, None, {"execution_tenant"}),
    "failed of a large tenant": ({"states": FAILED}, frozenset({LARGE}), {"execution_state"}),
    "failed of a small tenant": ({"states": FAILED}, frozenset({SMALL}), {"execution_state"}),
    "any state of a small tenant": ({"states": STATES}, frozenset({SMALL}), {"execution_state"}),
    "an object of a tenant": (
        {"object_names": ("dag-7", "absent")},
        frozenset({LARGE}),
        {"execution_object"},
    ),
    "failed of an object of some tenants": (
        {"object_names": ("dag-7",), "states": FAILED},
        SOME,
        {"execution_object"},
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_page_reads_no_more_than_it_returns(pool: ReadingPool, case: str) -> None:
    fields, namespaces, indexes = CASES[case]
    for descending in (True, False):
        for after in (None, position(DEPTH)):
            selection = ExecutionSelection(**fields, descending=descending, after=after)
            await check(pool, selection, namespaces, indexes)


async def test_a_range_of_creation_is_one_of_the_index(pool: ReadingPool) -> None:
    for case in CASES:
        fields, namespaces, indexes = CASES[case]
        for descending in (True, False):
            selection = ExecutionSelection(
                **fields,
                descending=descending,
                since=position(DEPTH).created_at,
                until=position(DEPTH - 300).created_at,
            )
            await check(pool, selection, namespaces, indexes)


async def test_executions_by_id_are_searches_of_the_primary_key(pool: ReadingPool) -> None:
    ids = [each.execution_id for each in ALL[:31]]
    for fields in ({}, {"states": FAILED}, {"object_names": ("dag-7",)}, {"descending": False}):
        for namespaces in (None, frozenset({LARGE, SMALL})):
            selection = ExecutionSelection(execution_ids=(*ids, "absent"), **fields)
            await check(pool, selection, namespaces, {"execution_pkey"})


async def check(
    pool: ReadingPool,
    selection: ExecutionSelection,
    namespaces: frozenset[str] | None,
    indexes: set[str],
) -> None:
    """Check the content of a page, its indexes, and what they read."""
    page = await read_executions(pool, selection, namespaces, LIMIT)
    shown = [(each.created_at, each.execution_id, each.namespace) for each in page.executions]
    assert shown == expected(selection, namespaces)
    statement, arguments = page_statement(selection, namespaces, LIMIT + 1)
    async with pool.acquire() as connection:
        plan = await explained(connection, statement, arguments)
    found = list(nodes(plan))
    assert not [node for node in found if node["Node Type"] == "Seq Scan"]
    scans = [node for node in found if "Index Name" in node]
    used = {node["Index Name"] for node in scans} - OF_FAILURES
    assert used <= indexes
    # Two searches for each tenant: of its name, and of its range; and one of each first failure.
    searches = sum(node["Actual Loops"] for node in scans)
    assert searches <= 2 + 2 * TENANTS * len(STATES) + 2 * LIMIT
    rows = sum(node["Actual Rows"] * node["Actual Loops"] for node in scans)
    removed = sum(
        node.get(f"Rows Removed by {of}", 0) for node in scans for of in ("Filter", "Index Recheck")
    )
    assert removed <= len(selection.execution_ids)
    # A search descends the index; a row is one entry and one page of the table.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= 5 * searches + 2 * rows + 10
