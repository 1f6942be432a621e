"""A broker for one benchmark, with the product's topic."""

import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from execution_events.embedded import EmbeddedKafka
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import end_offsets
from tests.support.servers import broker_in, data_directory
from tests.support.topics import make_topic

PARTITIONS = 6
_REBALANCE_DELAY = "group.initial.rebalance.delay.ms"
"""Set to Kafka's default: consumers that start together share the partitions at once."""


@dataclass(frozen=True)
class Broker:
    """An embedded Kafka; `directory` is on the same disk, for other files."""

    kafka: EmbeddedKafka
    settings: Settings
    directory: Path

    async def records(self) -> int:
        """Return the sum of the topic's end offsets."""
        return sum((await end_offsets(self.settings)).values())

    async def topic(self, partitions: int = PARTITIONS) -> Settings:
        """Create another empty topic and return settings for it."""
        settings = configured(self.settings, topic=f"benchmark-{secrets.token_hex(4)}")
        await make_topic(settings, partitions)
        return settings

    async def kill(self) -> None:
        """Send SIGKILL and wait for the end; `kafka.start` starts the broker again."""
        self.kafka.process.kill(signal.SIGKILL)
        await self.kafka.process.wait()


@asynccontextmanager
async def broker() -> AsyncIterator[Broker]:
    """Start one broker with default flushing and an empty topic of `PARTITIONS` partitions."""
    async with (
        data_directory() as directory,
        broker_in(directory, {_REBALANCE_DELAY: "3000"}) as kafka,
    ):
        settings = configured(kafka_bootstrap_servers=kafka.bootstrap_servers)
        await make_topic(settings, PARTITIONS)
        yield Broker(kafka, settings, directory.path.parent)
