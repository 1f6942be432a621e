"""Which changed events a selection has: in Python what the store's statements do for lists."""

from collections.abc import Iterable

from execution_events.projection.body import Body
from execution_events.reader.rendering import half
from execution_events.store.listing import Column, Selection
from execution_events.store.revisions import Change


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
