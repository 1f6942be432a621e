"""The publisher contract on the real publishers, with a real Kafka."""

from functools import partial
from pathlib import Path

import pytest

from execution_events import sync
from execution_events.publisher import Publisher
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.published import occurrences
from tests.support.publisher_contract import Case, PublisherContract, Threaded


@pytest.fixture
def spooled(settings: Settings, tmp_path: Path) -> Settings:
    return configured(settings, spool_dir=str(tmp_path / "spool"))


class TestPublisher(PublisherContract):
    @pytest.fixture
    def case(self, settings: Settings) -> Case:
        return Case(Publisher(settings), partial(occurrences, settings))


class TestPublisherWithSpool(PublisherContract):
    @pytest.fixture
    def case(self, spooled: Settings) -> Case:
        return Case(Publisher(spooled), partial(occurrences, spooled))


class TestSyncPublisher(PublisherContract):
    @pytest.fixture
    def case(self, settings: Settings) -> Case:
        return Case(Threaded(sync.Publisher(settings)), partial(occurrences, settings))


class TestSyncPublisherWithSpool(PublisherContract):
    @pytest.fixture
    def case(self, spooled: Settings) -> Case:
        return Case(Threaded(sync.Publisher(spooled)), partial(occurrences, spooled))
