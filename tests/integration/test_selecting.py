"""A watch selects the same events as a list with the same selection."""

import string
import sys
from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from itertools import count

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from execution_events.events import TIMESTAMP_MAX, TIMESTAMP_MIN, Occurrence
from execution_events.projection.body import decode
from execution_events.store.read.changes import ExecutionScope
from execution_events.store.read.events import EventReader
from execution_events.store.read.selection import Column, Selection, _folded, selects
from tests.support.databases import Database
from tests.support.filling import write
from tests.support.records import EPOCH, occurrence

_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
# Characters that fold to several, to another script or length, or unexpectedly; combining
# characters; and metacharacters of SQL, LIKE and regular expressions.
_AWKWARD = st.sampled_from(
    [
        *"ßẞsSſKkKÅåÅİiıIΣσς\u0345ιΙᾳᾼΐΰŉǰẖẗﬁﬀﬃfﬅﬓ\u01c4\u01c5\u01c6ꭰᎠ𐐀𐐨ΆάωΩΩµμéÉ",
        *["e\u0301", "i\u0307", "\u0307", "\u0301", "\u200d", "\u00ad", "\ufeff", "元", "😀"],
        *"##  %_\\'\"^$.*a\t\n\u00a0",
    ]
)
_TEXTS = st.lists(_AWKWARD | _CHARACTERS, max_size=8).map("".join)
_EDGES = st.sampled_from(["", " ", "  ", "\t", "\n", "\u00a0", "#"])
_REASONS = st.builds(
    "{}{}{}{}{}".format, _TEXTS, _EDGES, st.sampled_from(["", "##", "##", "####"]), _EDGES, _TEXTS
)
_COLUMNS: list[Column] = ["reason", "reason", "type", "elem_type", "elem_id", "action_name"]
_MOMENTS = st.one_of(
    st.integers(-2, 2).map(lambda number: EPOCH + timedelta(microseconds=number)),
    st.sampled_from([TIMESTAMP_MIN, TIMESTAMP_MAX, TIMESTAMP_MAX - timedelta(microseconds=1)]),
    st.datetimes(
        TIMESTAMP_MIN.replace(tzinfo=None),
        TIMESTAMP_MAX.replace(tzinfo=None),
        timezones=st.just(UTC),
    ),
)


def _value(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return texts.filter(lambda text: 1 <= len(text) <= 256)


@st.composite
def occurrences(draw: st.DrawFn) -> list[Occurrence]:
    values = draw(st.lists(_value(_TEXTS), min_size=1, max_size=3))
    text = st.sampled_from(values) | _value(_TEXTS)
    events = []
    for number in range(draw(st.integers(1, 5))):
        first, last = sorted((draw(_MOMENTS), draw(_MOMENTS)))
        events.append(
            occurrence(
                name=f"{number}",
                reason=draw(_value(_REASONS)),
                message=draw(_TEXTS),
                type=draw(text),
                elem_type=draw(text),
                elem_id=draw(text),
                action_name=draw(text),
                first_timestamp=first,
                last_timestamp=last,
            )
        )
    return events


@st.composite
def _parts(draw: st.DrawFn, texts: list[str]) -> str:
    """A substring of one of `texts`, in any case."""
    text = draw(st.sampled_from(texts))
    begin, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    part = text[begin:end]
    return draw(
        st.sampled_from(
            [part, part.casefold(), part.upper(), part.lower(), part.swapcase(), part.title()]
        )
    )


@st.composite
def selections(draw: st.DrawFn, events: list[Occurrence]) -> Selection:
    """Selections that mostly include some of `events` and not all."""

    def filters() -> tuple[tuple[Column, tuple[str, ...]], ...]:
        chosen = []
        for column in draw(st.lists(st.sampled_from(_COLUMNS), max_size=2, unique=True)):
            texts = [getattr(event, column) for event in events]
            # Also near misses: only spaces are trimmed.
            halves = [
                trimmed
                for text in texts
                for half in text.split("##", 1)
                for trimmed in (half, half.strip(" "), half.strip())
            ]
            own = st.sampled_from(texts + halves)
            values = st.lists(_value(own | _TEXTS), min_size=1, max_size=3, unique=True)
            chosen.append((column, tuple(sorted(draw(values)))))
        return tuple(chosen)

    texts = [event.message for event in events] + [event.reason for event in events]
    moments = [event.last_timestamp for event in events] + [e.first_timestamp for e in events]
    near = st.none() | _MOMENTS | st.sampled_from(moments)
    return Selection(
        descending=draw(st.booleans()),
        only=filters(),
        exclude=filters() if draw(st.booleans()) else (),
        since=draw(near),
        until=draw(near),
        text=draw(st.none() | _value(_parts(texts)) | _value(_TEXTS)),
    )


_numbers = count()


@pytest.fixture
async def lists(database: Database) -> AsyncIterator[EventReader]:
    async with EventReader.open(database.reader) as lists:
        yield lists


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
async def test_a_watch_selects_the_events_of_a_list(
    lists: EventReader, owner: asyncpg.Connection, data: st.DataObject
) -> None:
    execution_id = f"execution-{next(_numbers)}"
    events = data.draw(occurrences())
    # All examples share the database.
    await write(owner, [msgspec.structs.replace(one, execution_id=execution_id) for one in events])
    [delta] = await lists.deltas([(ExecutionScope(execution_id, None), {})])
    assert delta.is_complete
    assert len(delta.changes) == len(events)
    for _ in range(4):
        selection = data.draw(selections(events))
        page = await lists.page(execution_id, selection, None, 100)
        listed = {decode(body).metadata.name for body in page.bodies}
        selected = {c.event.metadata.name for c in delta.changes if selects(selection, c)}
        assert selected == listed
        event("all" if len(listed) == len(events) else "some" if listed else "none")


@pytest.mark.parametrize(
    ("stored", "found", "not_found"),
    [
        ("\N{KELVIN SIGN}", "\N{KELVIN SIGN}", "k"),
        ("\N{LATIN SMALL LETTER LONG S}", "\N{LATIN SMALL LETTER LONG S}", "S"),
        ("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "\u0130", "i\u0307"),
        ("straße", "STRAßE", "STRASSE"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}", "\uff21", "\uff41"),
        ("Éa", "ÉA", "éa"),
        ("A[Z@`{", "a[z@`{", "A{Z"),
    ],
)
async def test_lists_and_watches_fold_only_the_letters_a_to_z(
    lists: EventReader, owner: asyncpg.Connection, stored: str, found: str, not_found: str
) -> None:
    await write(
        owner,
        [
            occurrence(name="message", reason="x", message=f"x{stored}y"),
            occurrence(name="reason", reason=f"x{stored}y"),
        ],
    )
    [delta] = await lists.deltas([(ExecutionScope("execution-1", None), {})])
    for text, expected in ((found, {"message", "reason"}), (not_found, set())):
        selection = Selection(text=text)
        page = await lists.page("execution-1", selection, None, 100)
        assert {decode(body).metadata.name for body in page.bodies} == expected
        selected = {c.event.metadata.name for c in delta.changes if selects(selection, c)}
        assert selected == expected


async def test_python_and_postgresql_fold_only_the_letters_a_to_z(
    owner: asyncpg.Connection,
) -> None:
    characters = [chr(n) for n in range(1, sys.maxunicode + 1) if not 0xD800 <= n <= 0xDFFF]
    folded = await owner.fetchval(
        'SELECT array_agg(lower(character COLLATE "C") ORDER BY ordinal)'
        " FROM unnest($1::text[]) WITH ORDINALITY AS each (character, ordinal)",
        characters,
    )
    changed = [(a, b) for a, b in zip(characters, folded, strict=True) if a != b]
    assert changed == list(zip(string.ascii_uppercase, string.ascii_lowercase, strict=True))
    assert [_folded(character).decode() for character in characters] == folded
