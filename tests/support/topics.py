"""Topics of tests, created by the product on a single broker."""

from collections.abc import Mapping

from execution_events.kafka.topic import DAY_MS, Difference, create_topic
from execution_events.settings import Settings

CREATE_TIME = {"message.timestamp.type": "CreateTime"}
"""The configuration for tests that set the timestamps of records."""


async def make_topic(
    settings: Settings, partitions: int, configs: Mapping[str, str] | None = None
) -> list[Difference] | None:
    """Create a topic with one replica; `configs` are added to the required ones."""
    return await create_topic(
        settings.kafka,
        partitions=partitions,
        replication=1,
        min_insync_replicas=1,
        retention_ms=30 * DAY_MS,
        configs=configs,
    )
