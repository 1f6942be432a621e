"""The topic: made with what the guarantees need, and checked before it is read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from execution_events.errors import ExecutionEventsError, HaltError, RetryableError
from execution_events.kafka_client import forbid_topic_creation
from execution_events.settings import Settings

DAY_MS = 24 * 60 * 60 * 1000


async def create_topic(
    settings: Settings,
    *,
    partitions: int,
    replication: int,
    min_insync_replicas: int,
    retention_ms: int,
) -> bool:
    """Create the topic; False where it exists, which is left as it is."""
    topic = NewTopic(
        name=settings.topic,
        num_partitions=partitions,
        replication_factor=replication,
        topic_configs={
            "min.insync.replicas": str(min_insync_replicas),
            "unclean.leader.election.enable": "false",
            "cleanup.policy": "delete",
            "retention.ms": str(retention_ms),
        },
    )
    async with open_admin(settings) as admin:
        response = await admin.create_topics([topic])
    for _, code, message, *_ in response.topic_errors:
        error_type = for_code(code)
        if error_type is TopicAlreadyExistsError:
            return False
        if code:
            raise ExecutionEventsError(f"Kafka did not create {settings.topic}: {message}")
    return True


async def check_topic(settings: Settings) -> list[int]:
    """The topic's partitions.

    Raises `RetryableError` while the topic is missing, `HaltError` where it is compacted.
    """
    async with open_admin(settings) as admin:
        [described] = await admin.describe_topics([settings.topic])
        if described["error_code"] == UnknownTopicOrPartitionError.errno:
            raise RetryableError(
                f"the topic {settings.topic} does not exist: run `execution-events topic create`"
            )
        [configs] = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, settings.topic)]
        )
    for _, _, _, _, entries in configs.resources:
        policy = {entry[0]: entry[1] for entry in entries}.get("cleanup.policy", "")
        if "compact" in policy:
            raise HaltError(
                f"the topic {settings.topic} is compacted, so records are missing from its log: "
                "set its cleanup.policy to delete"
            )
    return sorted(partition["partition"] for partition in described["partitions"])


@asynccontextmanager
async def open_admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client; Kafka's errors come out as `RetryableError`."""
    admin = AIOKafkaAdminClient(**settings.kafka_client())
    forbid_topic_creation(admin._client)
    try:
        await admin.start()
        yield admin
    except KafkaError as error:
        raise RetryableError(f"Kafka at {settings.kafka_bootstrap_servers}: {error}") from error
    finally:
        await admin.close()
