"""The fold agrees with a model that follows its definition."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from execution_events.events import COUNT_MAX, Occurrence
from execution_events.projection.fold import FoldedEvent, Identity, fold, merge
from tests.support import strategies

occurrences = strategies.crowded_occurrences()
logs = st.lists(occurrences, max_size=12)
SETTINGS = settings(max_examples=200, deadline=None)


class Row(NamedTuple):
    """An event as readers see it, with its list position."""

    latest: Occurrence
    total: int
    first: datetime
    last: datetime
    list_position: datetime


def rows(folded: dict[Identity, FoldedEvent]) -> dict[Identity, Row]:
    return {
        identity: Row(
            event.latest,
            event.count,
            event.first_timestamp,
            event.latest.last_timestamp,
            event.list_position,
        )
        for identity, event in folded.items()
    }


def model(log: Iterable[Occurrence]) -> dict[Identity, Row]:
    """Fold by the definition: each field on its own, from all occurrences of the event."""
    by_identity: dict[Identity, list[Occurrence]] = {}
    for occurrence in log:
        identity = (occurrence.execution_id, occurrence.namespace, occurrence.name)
        by_identity.setdefault(identity, []).append(occurrence)
    return {
        identity: Row(
            # The sort is stable: the last of it is the later in the log on a tie.
            latest=sorted(same, key=lambda o: o.last_timestamp)[-1],
            total=min(sum(o.count for o in same), 9007199254740991),
            first=sorted(o.first_timestamp for o in same)[0],
            last=sorted(o.last_timestamp for o in same)[-1],
            list_position=same[0].first_timestamp,
        )
        for identity, same in by_identity.items()
    }


def fold_in_parts(log: list[Occurrence], parts: list[slice]) -> dict[Identity, FoldedEvent]:
    """Fold each part and merge it into the stored events, as the database does."""
    stored: dict[Identity, FoldedEvent] = {}
    for part in parts:
        for identity, event in fold(log[part]).items():
            stored[identity] = merge(stored[identity], event) if identity in stored else event
    return stored


@given(logs)
@SETTINGS
def test_fold_agrees_with_the_model(log: list[Occurrence]) -> None:
    assert rows(fold(log)) == model(log)


@given(st.data(), logs)
@SETTINGS
def test_any_split_gives_the_same_rows(data: st.DataObject, log: list[Occurrence]) -> None:
    parts = data.draw(strategies.splits(len(log)))
    assert fold_in_parts(log, parts) == fold(log)


@given(st.data(), logs)
@SETTINGS
def test_count_first_and_last_do_not_depend_on_the_order(
    data: st.DataObject, log: list[Occurrence]
) -> None:
    other = rows(fold(data.draw(st.permutations(log))))
    for identity, row in rows(fold(log)).items():
        assert row[1:4] == other[identity][1:4]


@given(occurrences, st.integers(-2, 2), st.integers(-2, 2))
@SETTINGS
def test_the_later_wins_a_tie_and_the_first_applied_keeps_its_list_position(
    earlier: Occurrence, first: int, last: int
) -> None:
    later = msgspec.structs.replace(
        earlier,
        message="later",
        first_timestamp=earlier.first_timestamp + timedelta(seconds=first),
        last_timestamp=earlier.last_timestamp + timedelta(seconds=last),
    )
    (event,) = fold([earlier, later]).values()
    assert event.latest is (later if last >= 0 else earlier)
    assert event.list_position == earlier.first_timestamp
    assert event.first_timestamp == earlier.first_timestamp + timedelta(seconds=min(first, 0))
    assert event.count == 2 * earlier.count


@st.composite
def folded_events(draw: st.DrawFn) -> FoldedEvent:
    """Events of one identity with sums near the maximum and far from it."""
    occurrence = draw(occurrences)
    count = st.integers(1, COUNT_MAX) | st.integers(COUNT_MAX - 2, COUNT_MAX) | st.integers(1, 3)
    first = occurrence.first_timestamp
    return FoldedEvent(occurrence, draw(count), first, first)


@given(folded_events(), folded_events(), folded_events())
@SETTINGS
def test_merge_is_associative_even_at_the_maximum_count(
    a: FoldedEvent, b: FoldedEvent, c: FoldedEvent
) -> None:
    before = [msgspec.structs.astuple(event) for event in (a, b, c)]
    merged = merge(merge(a, b), c)
    assert merged == merge(a, merge(b, c))
    assert merged.count == min(a.count + b.count + c.count, 2**53 - 1)
    assert [msgspec.structs.astuple(event) for event in (a, b, c)] == before


def test_the_maximum_count_is_the_greatest_exact_json_integer() -> None:
    assert COUNT_MAX == 2**53 - 1
