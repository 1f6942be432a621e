"""Pages of executions: the newest, by tenant, state, object or id."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from execution_events.projection.states import STATES
from execution_events.store.connection import translated_errors
from execution_events.store.read.changes import Namespaces
from execution_events.store.read.pool import ReadingPool
from execution_events.store.sql import load_queries, number_arguments

_SQL = load_queries("executions")


class ExecutionPosition(NamedTuple):
    """An execution's key in the order of creation."""

    created_at: datetime
    execution_id: str
    namespace: str


class ExecutionSelection(msgspec.Struct, frozen=True, kw_only=True):
    """Filters on executions, joined by AND, and their order; an empty filter selects all.

    Times are aware. Equal selections have equal encodings.
    """

    descending: bool = True
    execution_ids: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    object_names: tuple[str, ...] = ()
    since: datetime | None = None
    """Lower limit of the creation, inclusive."""
    until: datetime | None = None
    """Upper limit of the creation, exclusive."""
    after: ExecutionPosition | None = None
    """Executions after this key in the selected order; none needs to have it."""


class StoredExecution(NamedTuple):
    """An execution as it is stored; `first_failure` is the body of the event that it failed by.

    `first_failure` is None unless the state is failed or timed_out.
    """

    execution_id: str
    namespace: str
    object_name: str
    state: str
    elements: int
    running: int
    succeeded: int
    failed: int
    timed_out: int
    cancelled: int
    warnings: int
    events: int
    occurrences: int
    first_timestamp: datetime
    last_timestamp: datetime
    created_at: datetime
    first_failure: bytes | None


class ExecutionPage(NamedTuple):
    """Executions from one snapshot.

    `last` is the position of the last one; None if no other follows. `revisions` are those of all
    executions with the selected ids that the caller may read; None if none are selected by id.
    """

    executions: list[StoredExecution]
    last: ExecutionPosition | None
    revisions: str | None


async def read_executions(
    pool: ReadingPool,
    selection: ExecutionSelection,
    namespaces: Namespaces,
    limit: int,
    share: str | None = None,
) -> ExecutionPage:
    """Return the first `limit` executions of a selection, by a connection of `share`."""
    # The extra row tells whether executions follow the page.
    statement, arguments = page_statement(selection, namespaces, limit + 1)
    with translated_errors():
        async with pool.acquire(share) as connection:
            rows = await connection.fetch(statement, *arguments)
    revisions = None
    if selection.execution_ids:
        revisions = rows[0]["revisions"] or ""
        rows = [row for row in rows if row["execution_id"] is not None]
    width = len(StoredExecution._fields)
    executions = [StoredExecution(*row[:width]) for row in rows[:limit]]
    last = executions[-1] if len(rows) > limit else None
    return ExecutionPage(
        executions,
        last and ExecutionPosition(last.created_at, last.execution_id, last.namespace),
        revisions,
    )


def page_statement(
    selection: ExecutionSelection, namespaces: Namespaces, limit: int
) -> tuple[str, list[object]]:
    """Return the statement of a page of at most `limit` rows, and its arguments."""
    allowed = _readable(selection, namespaces)
    arguments: dict[str, object] = {
        "limit": limit,
        "namespaces": allowed,
        "execution_ids": selection.execution_ids,
        "states": selection.states or STATES,
        "object_names": selection.object_names,
    }
    direction = " DESC" if selection.descending else ""
    begin, end = _range(selection)
    arguments |= dict(
        zip(("created_at", "execution_id", "namespace", "until"), (*begin, end), strict=True)
    )
    parts = {
        "columns": _SQL["columns"],
        "order": _ordered(("created_at", "execution_id", "namespace"), direction),
        "after": "<" if selection.descending else ">",
        "before": ">=" if selection.descending else "<",
    }
    if selection.execution_ids:
        filters = (("state", selection.states), ("object_name", selection.object_names))
        found = _SQL["by_id"].format(
            **parts, filters="".join(_only(column) for column, values in filters if values)
        )
        page = _SQL["page"].format(**parts, found=found)
        readable = "" if allowed is None else _only("namespace")
        statement = _SQL["page_with_revisions"].format(**parts, readable=readable, page=page)
    else:
        statement = _SQL["page"].format(**parts, found=_by_range(selection, allowed, parts))
    numbered, names = number_arguments(statement)
    return numbered, [arguments[name] for name in names]


def _by_range(
    selection: ExecutionSelection, allowed: Sequence[str] | None, parts: Mapping[str, str]
) -> str:
    """Return the search of an index in each of its ranges: of a tenant, an object, a state."""
    if selection.object_names:
        index = ["object_name", "namespace", "state"]
    elif selection.states:
        index = ["state", "namespace"]
    else:
        index = [] if allowed is None else ["namespace"]
    sources = {
        "namespace": "every_namespace" if allowed is None else "namespaces",
        "object_name": "objects",
        "state": "states",
    }
    of = {"namespace": "tenant", "object_name": "object", "state": "wanted"}
    direction = " DESC" if selection.descending else ""
    return _SQL["by_range"].format(
        **parts,
        of="\nCROSS JOIN ".join(_SQL[sources[column]] for column in index) or _SQL["all"],
        range="".join(f"{column}, " for column in index),
        values="".join(f"{of[column]}.{column}, " for column in index),
        range_order="".join(f"{column}{direction}, " for column in index),
    )


def _only(column: str) -> str:
    return f" {_SQL['only'].format(column=column, argument=f'{column}s')}"


def _readable(selection: ExecutionSelection, namespaces: Namespaces) -> list[str] | None:
    """Return the selected namespaces that the caller may read; None is all."""
    if not selection.namespaces:
        return None if namespaces is None else sorted(namespaces)
    return [each for each in selection.namespaces if namespaces is None or each in namespaces]


def _range(selection: ExecutionSelection) -> tuple[tuple[str, str, str], str]:
    """Return the key that the page begins after, and the creation at which the range ends.

    The key with empty texts precedes all executions of its creation.
    """
    # As text, which has infinity.
    first, end = selection.since, selection.until
    if selection.descending:
        first, end = end, first
    infinity = ("infinity", "-infinity") if selection.descending else ("-infinity", "infinity")
    begin = (infinity[0] if first is None else first.isoformat(), "", "")
    after = selection.after
    # A forged marker may be outside the range.
    if after is not None and (
        first is None
        or (after.created_at < first if selection.descending else after.created_at >= first)
    ):
        begin = (after.created_at.isoformat(), after.execution_id, after.namespace)
    return begin, infinity[1] if end is None else end.isoformat()


def _ordered(columns: Sequence[str], direction: str) -> str:
    return ", ".join(f"{column}{direction}" for column in columns)
