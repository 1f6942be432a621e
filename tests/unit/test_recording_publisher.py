"""Recording publishers fulfil the contract of the real ones."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from execution_events import sync
from execution_events.errors import SettingsError
from execution_events.events import Occurrence
from execution_events.publisher import Publisher
from execution_events.settings import Settings
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


async def test_a_recording_publisher_replaces_a_publisher() -> None:
    recording = RecordingPublisher.from_settings({})
    assert isinstance(recording, Publisher)
    async with recording as publisher:
        await publisher.publish(EVENT)
    assert [event.reason for event in recording.events] == [EVENT.reason]


def test_a_recording_publisher_belongs_to_its_event_loop() -> None:
    async def opened() -> RecordingPublisher:
        return await RecordingPublisher().__aenter__()

    publisher = asyncio.run(opened())
    for call in (publisher.publish(EVENT), publisher.flush(), publisher.close()):
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(call)


def test_the_recording_publisher_for_threads_replaces_a_publisher() -> None:
    recording = SyncRecordingPublisher.from_settings({})
    assert isinstance(recording, sync.Publisher)
    with recording as publisher:
        publisher.publish(EVENT)
    assert [event.reason for event in recording.events] == [EVENT.reason]


@pytest.mark.parametrize(
    ("recording", "real"),
    [(RecordingPublisher, Publisher), (SyncRecordingPublisher, sync.Publisher)],
)
def test_every_method_that_reaches_kafka_is_overridden(recording: type, real: type) -> None:
    """A new method must be added here, and overridden if it reaches Kafka."""
    assert {name for name in vars(real) if not name.startswith("_")} == {
        *("from_settings", "element", "publish", "flush", "close"),
    }
    if real is Publisher:
        assert {"publish", "flush", "close", "__aenter__", "__aexit__"} <= vars(recording).keys()


PUBLISHERS = [Publisher, sync.Publisher, RecordingPublisher, SyncRecordingPublisher]


@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize("wrong", [{}, "events", 7], ids=["dict", "str", "int"])
def test_a_publisher_takes_only_settings(publisher: Any, wrong: object) -> None:
    with pytest.raises(TypeError, match=r"^settings: expected Settings, not (dict|str|int): "):
        publisher(wrong)


@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize("wrong", [[], "events", Settings()], ids=["list", "str", "Settings"])
def test_settings_are_read_only_from_a_mapping(publisher: Any, wrong: object) -> None:
    with pytest.raises(TypeError, match=r"^environ: expected a mapping, not "):
        publisher.from_settings(wrong)


@pytest.mark.parametrize("publisher", PUBLISHERS)
def test_a_setting_that_is_no_text_is_named(publisher: Any) -> None:
    wrong = {"EXECUTION_EVENTS_PUBLISH_TIMEOUT": 30}
    with pytest.raises(
        SettingsError, match=r"^EXECUTION_EVENTS_PUBLISH_TIMEOUT: expected text, not int$"
    ):
        publisher.from_settings(wrong)
