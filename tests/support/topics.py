"""Topics of tests: made by the product's own function, on one broker."""

from collections.abc import Mapping

from execution_events.kafka.topic import DAY_MS, Difference, create_topic
from execution_events.settings import Settings

CREATE_TIME = {"message.timestamp.type": "CreateTime"}
"""For tests that choose the timestamps of their records."""


async def make_topic(
    settings: Settings, partitions: int, configs: Mapping[str, str] | None = None
) -> list[Difference] | None:
    """`create_topic` with one replica, and `configs` above what the guarantees need."""
    return await create_topic(
        settings.kafka,
        partitions=partitions,
        replication=1,
        min_insync_replicas=1,
        retention_ms=30 * DAY_MS,
        configs=configs,
    )
