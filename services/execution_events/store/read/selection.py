"""The selection of events by a caller; `selects` is equivalent to the filters of `listing.sql`."""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from execution_events.bilingual import half
from execution_events.projection.body import Body
from execution_events.store.read.changes import Change

Column = Literal["type", "reason", "elem_type", "elem_id", "action_name"]
"""A column that events are filtered by."""


class Position(NamedTuple):
    """An event's key in the order of creation."""

    list_position: datetime
    name: str
    namespace: str


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Filters on an execution's events, joined by AND, and their order.

    Times are aware. Equal selections have equal encodings.
    """

    descending: bool = False
    only: tuple[tuple[Column, tuple[str, ...]], ...] = ()
    """Columns and their accepted values; `reason` also matches by either half."""
    exclude: tuple[tuple[Column, tuple[str, ...]], ...] = ()
    """Columns and their refused values, matched like those of `only`."""
    since: datetime | None = None
    """Lower limit of the last timestamp, inclusive."""
    until: datetime | None = None
    """Upper limit of the first timestamp, exclusive."""
    text: str | None = None
    """A substring of message or reason; the letters A to Z match in either case."""
    after: Position | None = None
    """Events after this key in the selected order; no event needs to have it."""


def selects(selection: Selection, change: Change) -> bool:
    """Return whether `selection` includes the event in its state after `change`."""
    event = change.event
    return (
        all(_has(event, column, values) for column, values in selection.only)
        and not any(_has(event, column, values) for column, values in selection.exclude)
        and (selection.since is None or change.last_timestamp >= selection.since)
        and (selection.until is None or change.first_timestamp < selection.until)
        and (selection.text is None or _contains(event, selection.text))
    )


def _has(event: Body, column: Column, values: Iterable[str]) -> bool:
    text: str = getattr(event, column)
    if column == "reason":
        return not {text, half(text, "zh"), half(text, "en")}.isdisjoint(values)
    return text in values


def _contains(event: Body, text: str) -> bool:
    folded = _folded(text)
    return folded in _folded(event.message) or folded in _folded(event.reason)


def _folded(text: str) -> bytes:
    # Of bytes, lower() changes the letters A to Z alone. A substring in UTF-8 is one of the text.
    return text.encode().lower()
