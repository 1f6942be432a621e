"""How a publisher ends when Kafka is away; all else is tested against the real one."""

import asyncio

import pytest

from execution_events.errors import RetryableError
from execution_events.publisher import Publisher, publisher
from execution_events.settings import Settings


class StuckProducer:
    """One whose stop waits for ever, as aiokafka's does while Kafka is away."""

    async def stop(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    monkeypatch.setattr(publisher, "_STOP_TIMEOUT", 0.01)
    stuck = Publisher(Settings())
    stuck._producer = StuckProducer()
    return stuck


async def test_a_stop_is_bounded_and_says_that_kafka_is_away(stuck: Publisher) -> None:
    with pytest.raises(RetryableError, match="could not stop"):
        await stuck.__aexit__(None, None, None)


async def test_a_stop_that_fails_does_not_hide_what_went_wrong(stuck: Publisher) -> None:
    error = ValueError()
    await stuck.__aexit__(ValueError, error, None)
