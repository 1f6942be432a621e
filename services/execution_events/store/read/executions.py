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
        "direction": direction.order,
        "order": ", ".join(f"{column} {direction.order}" for column in _KEY),
        "beyond": direction.beyond,
        "within": direction.within,
    }
    if selection.execution_ids:
        found = _by_id(selection, parts)
    else:
        found = _by_range(selection, readable, parts)
    statement = _SQL["page"].format(**parts, found=found)
    if selection.execution_ids:
        of_tenants = "" if readable is None else _only("namespace")
        statement = _SQL["page_with_revisions"].format(
            **parts, of_tenants=of_tenants, page=statement
        )
    numbered, names = number_arguments(statement)
    return numbered, [arguments[name] for name in names]


def _by_id(selection: ExecutionSelection, parts: Mapping[str, str]) -> str:
    """Return the search of the executions that `page_with_revisions` has found by id."""
    filters = (("state", selection.states), ("object_name", selection.object_names))
    return _SQL["by_id"].format(
        **parts,
        begin=_SQL["begin"],
        end=_SQL["end"],
        filters="".join(_only(column) for column, values in filters if values),
    )


def _by_range(
    selection: ExecutionSelection, readable: Sequence[str] | None, parts: Mapping[str, str]
) -> str:
    """Return the search of the one index that has the filters of a selection.

    By state and object, their index alone has the creation in UTC. By tenant, the namespace is one
    of an array, which keeps it in the order, and only one index begins with it.
    """
    tenants = "every_namespace" if readable is None else "namespaces"
    ranges, equal = ["all"], ""
    if selection.object_names:
        ranges, equal = ["objects", tenants, "states"], "of_object"
    elif selection.states:
        ranges, equal = [tenants, "states"], "of_state"
    elif readable is not None:
        ranges, equal = [tenants], "of_tenant"
    moment = _SQL["in_utc"] if "states" in ranges else "{moment}"
    return _SQL["by_range"].format(
        **parts,
        ranges="\nCROSS JOIN ".join(_SQL[each] for each in ranges),
        equal=equal and f"{_SQL[equal]} ",
        created=moment.format(moment="created_at"),
        begin=moment.format(moment=_SQL["begin"]),
        end=moment.format(moment=_SQL["end"]),
        range_order=f"namespace {parts['direction']}, " if equal == "of_tenant" else "",
    )


def _only(column: str) -> str:
    return "\n    " + _SQL["only"].format(column=column, argument=f"{column}s")


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
