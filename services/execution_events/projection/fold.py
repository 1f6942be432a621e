"""The fold of an event's occurrences."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from execution_events.events import COUNT_MAX, Occurrence

Identity = tuple[str, str, str]
"""(execution id, namespace, name)"""


class FoldedEvent(msgspec.Struct, gc=False):
    """The result of applying an event's occurrences in log order.

    `latest` is the occurrence with the greatest last timestamp, on a tie the later in the log.
    `list_position` is the first timestamp of the first occurrence applied; it never changes.
    """

    latest: Occurrence
    count: int
    first_timestamp: datetime
    list_position: datetime

    @property
    def identity(self) -> Identity:
        return self.latest.execution_id, self.latest.namespace, self.latest.name


def fold(occurrences: Iterable[Occurrence]) -> dict[Identity, FoldedEvent]:
    """Fold occurrences, given in log order, by identity.

    Associative: merging the folds of two consecutive parts gives the fold of the whole.
    """
    folded: dict[Identity, FoldedEvent] = {}
    for occurrence in occurrences:
        identity = (occurrence.execution_id, occurrence.namespace, occurrence.name)
        event = folded.get(identity)
        if event is None:
            folded[identity] = _first(occurrence)
        else:
            _apply(event, occurrence, occurrence.count, occurrence.first_timestamp)
    return folded


def first_objects(occurrences: Sequence[Occurrence]) -> dict[tuple[str, str], str]:
    """Return the object of the first of the occurrences of each execution and namespace."""
    return {
        (occurrence.execution_id, occurrence.namespace): occurrence.object_name
        for occurrence in reversed(occurrences)
    }


def merge(earlier: FoldedEvent, later: FoldedEvent) -> FoldedEvent:
    """Return `earlier` with `later` applied to it."""
    merged = FoldedEvent(
        earlier.latest, earlier.count, earlier.first_timestamp, earlier.list_position
    )
    _apply(merged, later.latest, later.count, later.first_timestamp)
    return merged


def _first(occurrence: Occurrence) -> FoldedEvent:
    first = occurrence.first_timestamp
    return FoldedEvent(occurrence, occurrence.count, first, first)


def _apply(event: FoldedEvent, latest: Occurrence, count: int, first: datetime) -> None:
    event.count = min(event.count + count, COUNT_MAX)
    if first < event.first_timestamp:
        event.first_timestamp = first
    if latest.last_timestamp >= event.latest.last_timestamp:
        event.latest = latest
