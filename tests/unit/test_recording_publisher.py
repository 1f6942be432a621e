"""The publishers for workers' tests do what the real ones do."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from execution_events import sync
from execution_events.events import Occurrence
from execution_events.publisher import Publisher
from execution_events.testing import RecordingPublisher, SyncRecordingPublisher
from tests.support.publisher_contract import EVENT, Case, PublisherContract, Threaded


def published(
    recording: RecordingPublisher | SyncRecordingPublisher,
) -> Callable[[], Awaitable[list[Occurrence]]]:
    async def events() -> list[Occurrence]:
        return list(recording.events)

    return events


class TestRecordingPublisher(PublisherContract):
    @pytest.fixture
    def case(self) -> Case:
        recording = RecordingPublisher()
        return Case(recording, published(recording))


class TestSyncRecordingPublisher(PublisherContract):
    @pytest.fixture
    def case(self) -> Case:
        recording = SyncRecordingPublisher()
        return Case(Threaded(recording), published(recording))


async def test_it_stands_where_a_publisher_is_made_or_passed() -> None:
    made = RecordingPublisher.from_settings({})
    assert isinstance(made, Publisher)
    async with made as publisher:
        await publisher.publish(EVENT)
    assert [event.reason for event in made.events] == [EVENT.reason]


def test_it_belongs_to_its_event_loop_as_the_real_one_does() -> None:
    async def opened() -> RecordingPublisher:
        return await RecordingPublisher().__aenter__()

    publisher = asyncio.run(opened())
    for call in (publisher.publish(EVENT), publisher.flush(), publisher.close()):
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(call)


def test_the_one_for_threads_does_too() -> None:
    made = SyncRecordingPublisher.from_settings({})
    assert isinstance(made, sync.Publisher)
    with made as publisher:
        publisher.publish(EVENT)
    assert [event.reason for event in made.events] == [EVENT.reason]


@pytest.mark.parametrize(
    ("recording", "real"),
    [(RecordingPublisher, Publisher), (SyncRecordingPublisher, sync.Publisher)],
)
def test_nothing_of_the_real_one_is_missing(recording: type, real: type) -> None:
    """What would reach for Kafka is overridden; a new method has to be considered here."""
    assert {name for name in vars(real) if not name.startswith("_")} == {
        *("from_settings", "element", "publish", "flush", "close"),
    }
    if real is Publisher:
        assert {"publish", "flush", "close", "__aenter__", "__aexit__"} <= vars(recording).keys()
