"""Pages of executions: the newest, by tenant, state, object or id."""

from collections.abc import Iterable, Mapping, Sequence
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


class _Direction(NamedTuple):
    """The order of a list, and the ends of the range of creations that it walks from and to."""

    order: str
    beyond: str
    within: str
    begin: str
    end: str


_ASCENDING = _Direction("ASC", ">", "<", "-infinity", "infinity")
_DESCENDING = _Direction("DESC", "<", ">=", "infinity", "-infinity")
_KEY = ExecutionPosition._fields


def page_statement(
    selection: ExecutionSelection, namespaces: Namespaces, limit: int
) -> tuple[str, list[object]]:
    """Return the statement of a page of at most `limit` executions, and its arguments."""
    direction = _DESCENDING if selection.descending else _ASCENDING
    readable = _readable(selection, namespaces)
    begin, end = _range(selection, direction)
    arguments: dict[str, object] = {
        "limit": limit,
        "execution_ids": selection.execution_ids,
        "namespaces": readable,
        "object_names": selection.object_names,
        "states": selection.states or STATES,
        "end": end,
        **dict(zip(_KEY, begin, strict=True)),
    }
    parts = {
        "columns": _SQL["columns"],
        "order": _columns(_KEY, f" {direction.order}").removesuffix(", "),
        "beyond": direction.beyond,
        "within": direction.within,
    }
    if selection.execution_ids:
        filters = (("state", selection.states), ("object_name", selection.object_names))
        found = _SQL["by_id"].format(
            **parts, filters="".join(_only(column) for column, values in filters if values)
        )
        page = _SQL["page"].format(**parts, found=found)
        of_tenants = "" if readable is None else _only("namespace")
        statement = _SQL["page_with_revisions"].format(**parts, of_tenants=of_tenants, page=page)
    else:
        index = _index(selection, readable)
        found = _SQL["by_range"].format(
            **parts,
            ranges="\nCROSS JOIN ".join(_source(readable)[column] for column in index)
            or _SQL["all"],
            range=_columns(index),
            range_order=_columns(index, f" {direction.order}"),
            values="".join(f"{_ALIASES[column]}.{column}, " for column in index),
        )
        statement = _SQL["page"].format(**parts, found=found)
    numbered, names = number_arguments(statement)
    return numbered, [arguments[name] for name in names]


def _readable(selection: ExecutionSelection, namespaces: Namespaces) -> list[str] | None:
    """Return the selected namespaces that the caller may read; None is all."""
    if not selection.namespaces:
        return None if namespaces is None else sorted(namespaces)
    return [each for each in selection.namespaces if namespaces is None or each in namespaces]


def _range(
    selection: ExecutionSelection, direction: _Direction
) -> tuple[tuple[str, str, str], str]:
    """Return the key that the page begins after, and the creation at which its range ends.

    A key with empty texts precedes all executions of its creation. Creations are texts, which
    include infinity.
    """
    first, last = selection.since, selection.until
    if selection.descending:
        first, last = last, first
    begins = [] if first is None else [ExecutionPosition(first, "", "")]
    if selection.after is not None:
        # A forged marker may be outside the range.
        begins.append(selection.after)
    begin = (min if selection.descending else max)(begins, default=None)
    return (
        (direction.begin, "", "")
        if begin is None
        else (begin.created_at.isoformat(), begin.execution_id, begin.namespace),
        direction.end if last is None else last.isoformat(),
    )


_ALIASES = {"object_name": "object", "namespace": "tenant", "state": "wanted"}


def _index(selection: ExecutionSelection, readable: Sequence[str] | None) -> Sequence[str]:
    """Return the columns before the key in the index that has the filters of a selection."""
    if selection.object_names:
        return ("object_name", "namespace", "state")
    if selection.states:
        return ("state", "namespace")
    return () if readable is None else ("namespace",)


def _source(readable: Sequence[str] | None) -> Mapping[str, str]:
    """Return what has the values of each column of an index."""
    return {
        "object_name": _SQL["objects"],
        "namespace": _SQL["every_namespace" if readable is None else "namespaces"],
        "state": _SQL["states"],
    }


def _columns(columns: Iterable[str], order: str = "") -> str:
    return "".join(f"{column}{order}, " for column in columns)


def _only(column: str) -> str:
    return "\n    " + _SQL["only"].format(column=column, argument=f"{column}s")
