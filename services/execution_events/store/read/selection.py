"""Which events a caller selects: in Python what `listing.sql` does in the database."""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from execution_events.bilingual import half
from execution_events.projection.body import Body
from execution_events.store.read.changes import Change

Column = Literal["type", "reason", "elem_type", "elem_id", "action_name"]
"""What events are selected by."""


class Position(NamedTuple):
    """Where an event stands in the order of creation."""

    place: datetime
    name: str
    namespace: str


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which events of an execution, and in which order; all conditions hold at once.

    Times are aware. Equal selections are encoded alike.
    """

    descending: bool = False
    only: tuple[tuple[Column, tuple[str, ...]], ...] = ()
    """Events whose column has one of the values, of `reason` either half too."""
    exclude: tuple[tuple[Column, tuple[str, ...]], ...] = ()
    """Not those that `only` would give."""
    since: datetime | None = None
    """Events that occurred then or later."""
    until: datetime | None = None
    """Events that occurred before."""
    text: str | None = None
    """Part of message or reason under Unicode's full case folding."""
    after: Position | None = None
    """Events that come after it in this order, whether or not it is there."""


def selects(selection: Selection, change: Change) -> bool:
    """Whether a list of `selection` has the event as it is after `change`."""
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
    folded = text.casefold()
    return folded in event.message.casefold() or folded in event.reason.casefold()
