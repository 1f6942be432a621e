"""Streams of all events of a selection, from one snapshot."""

from collections.abc import AsyncIterator
from itertools import chain

import asyncpg
import pytest

from execution_events.projection.body import decode
from execution_events.store.read.events import EventReader, Page
from execution_events.store.read.selection import Selection
from tests.support.databases import Database
from tests.support.filling import fill
from tests.support.readers import named
from tests.support.records import Log

ONE = "execution-1"
EVENTS = 300
_LIMIT = 100


@pytest.fixture
async def events(database: Database) -> AsyncIterator[EventReader]:
    async with EventReader.open(database.reader) as events:
        yield events


async def streamed(
    events: EventReader, selection: Selection, page: Page | None
) -> tuple[str, list[list[str]]]:
    """Return the revisions and the names of each batch."""
    async with events.stream(ONE, selection, None, page) as stream:
        return stream.revisions, [
            [decode(body).metadata.name for body in batch] async for batch in stream.batches
        ]


@pytest.mark.parametrize("selection", [Selection(), Selection(descending=True)])
async def test_a_stream_continues_its_first_page(
    events: EventReader, owner: asyncpg.Connection, selection: Selection
) -> None:
    """The events of the page are not read again."""
    await fill(owner, EVENTS)
    revisions, batches = await streamed(events, selection, None)
    names = list(chain(*batches))
    assert len(names) == EVENTS

    page = await events.page(ONE, selection, None, _LIMIT)
    with_page, continued = await streamed(events, selection, page)

    assert with_page == revisions == page.revisions
    assert list(chain(*continued)) == names
    # A fetch would have returned more events.
    assert continued[0] == names[:_LIMIT]
    assert page.bodies == []


async def test_a_stream_starts_again_if_the_execution_changed_after_the_page(
    events: EventReader, owner: asyncpg.Connection, written: Log
) -> None:
    await fill(owner, EVENTS)
    page = await events.page(ONE, Selection(), None, _LIMIT)
    # It precedes all others, and would be missing after the page.
    await written.add(named("first", -1))

    revisions, batches = await streamed(events, Selection(), page)

    assert revisions != page.revisions
    names = list(chain(*batches))
    assert len(names) == EVENTS + 1
    assert names[0] == "first"


async def test_a_whole_page_is_not_given_twice(
    events: EventReader, owner: asyncpg.Connection
) -> None:
    await fill(owner, 10)
    page = await events.page(ONE, Selection(), None, _LIMIT)
    assert page.last is None
    _, batches = await streamed(events, Selection(), page)
    assert len(list(chain(*batches))) == 10


async def test_an_absent_execution_has_an_empty_stream(events: EventReader) -> None:
    assert await streamed(events, Selection(), None) == ("", [])
