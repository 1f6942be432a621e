"""The topic, created, altered and checked against the configuration that the guarantees need."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.admin import CreatePartitionsRequest

from execution_events.errors import HaltError, RetryableError
from execution_events.kafka.connection import client_options
from execution_events.kafka.errors import kafka_error, missing_topic, translated
from execution_events.kafka.protocol import IncrementalAlterConfigs, forbid_topic_creation
from execution_events.settings import KafkaSettings

DAY_MS = 24 * 60 * 60 * 1000
PARTITIONS, REPLICATION = "partitions", "replication"
_MIN_INSYNC_REPLICAS = "min.insync.replicas"
_REQUEST_TIMEOUT_MS = 10_000
_APPLY_TIMEOUT = 30
"""Seconds until a broker must report a change that Kafka has accepted."""
_POLL_INTERVAL = 0.1  # seconds


class Difference(NamedTuple):
    """A property of an existing topic that differs from the wanted value.

    `name` is `PARTITIONS`, `REPLICATION`, or the name of a configuration.
    """

    name: str
    found: str
    wanted: str


class _WantedTopic(NamedTuple):
    """The properties that the topic should have."""

    partitions: int
    replication: int
    configs: Mapping[str, str]

    def differences(self, topic: "_FoundTopic") -> list[Difference]:
        wanted = {
            PARTITIONS: str(self.partitions),
            REPLICATION: str(self.replication),
            **self.configs,
        }
        found = {
            PARTITIONS: str(len(topic.replicas)),
            # More than one number while replicas are reassigned.
            REPLICATION: ", ".join(map(str, sorted(set(topic.replicas.values())))),
            **topic.configs,
        }
        return [
            Difference(name, found.get(name, "unset"), value)
            for name, value in wanted.items()
            if found.get(name) != value
        ]


class _FoundTopic(NamedTuple):
    """The topic as known to one broker: replicas by partition, and all configurations."""

    replicas: dict[int, int]
    configs: dict[str, str]


async def create_topic(
    settings: KafkaSettings,
    *,
    partitions: int,
    replication: int,
    min_insync_replicas: int,
    retention_ms: int,
    configs: Mapping[str, str] | None = None,
) -> list[Difference] | None:
    """Create the topic and return None, or return how an existing one differs from the arguments.

    An existing topic is not changed. `configs` override the configuration that the guarantees need.
    """
    wanted = _WantedTopic(
        partitions,
        replication,
        {
            _MIN_INSYNC_REPLICAS: str(min_insync_replicas),
            "unclean.leader.election.enable": "false",
            "cleanup.policy": "delete",
            "retention.ms": str(retention_ms),
            # With CreateTime, Kafka would remove records of an old spool at once, and refuse those
            # of a producer whose clock is ahead.
            "message.timestamp.type": "LogAppendTime",
        }
        | dict(configs or {}),
    )
    topic = NewTopic(settings.topic, partitions, replication, topic_configs=dict(wanted.configs))
    async with open_admin(settings) as admin:
        await _wait_for_controller(admin, settings)
        response = await admin.create_topics([topic])
        [(_, code, message, *_)] = response.topic_errors
        error = for_code(code)
        if error is NoError:
            return None
        if error is not TopicAlreadyExistsError:
            problem = f"the topic {settings.topic} cannot be created"
            raise _refusal(settings, problem, error, message, "Create on it")
        # Another process may just have created it, and not every broker knows it yet.
        found = await _wait_for_topic(admin, settings, lambda _: True)
        return wanted.differences(found)


def obstacles(differences: Collection[Difference]) -> dict[Difference, str]:
    """Return the differences that `alter_topic` cannot remove, each with the reason."""
    replication = next((each for each in differences if each.name == REPLICATION), None)
    reasons: dict[Difference, str] = {}
    for each in differences:
        if each.name == REPLICATION:
            reasons[each] = "Kafka's kafka-reassign-partitions.sh changes it"
        elif each.name == PARTITIONS and int(each.wanted) < int(each.found):
            reasons[each] = "partitions cannot be removed"
        elif each.name == _MIN_INSYNC_REPLICAS and replication is not None:
            # A topic with min.insync.replicas above its replicas accepts no records.
            reasons[each] = f"not before {REPLICATION} is {replication.wanted}"
    return reasons


async def alter_topic(
    settings: KafkaSettings, differences: Collection[Difference]
) -> AsyncIterator[Difference]:
    """Remove the differences that have no obstacle; yield each once a broker reports the change.

    The topic's other configurations are not changed.
    """
    differences = [each for each in differences if each not in obstacles(differences)]
    configs = [each for each in differences if each.name != PARTITIONS]
    async with open_admin(settings) as admin:
        if configs:
            await _alter_configs(admin, settings, {each.name: each.wanted for each in configs})
            for each in configs:
                yield each
        for each in differences:
            if each.name == PARTITIONS:
                await _add_partitions(admin, settings, int(each.wanted))
                yield each


async def check_topic(settings: KafkaSettings) -> list[int]:
    """Return the topic's partitions.

    Raises `RetryableError` while the topic is missing or cannot be described, `HaltError` if it is
    compacted.
    """
    async with open_admin(settings) as admin:
        topic = await _describe_topic(admin, settings)
    if topic is None:
        raise kafka_error(settings.bootstrap_servers, missing_topic(settings.topic))
    if "compact" in topic.configs.get("cleanup.policy", ""):
        raise HaltError(
            f"the topic {settings.topic} is compacted, so its log lacks records: "
            "set its cleanup.policy to delete"
        )
    return sorted(topic.replicas)


@asynccontextmanager
async def open_admin(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """Open an admin client that raises Kafka's errors as `RetryableError`."""
    admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=_REQUEST_TIMEOUT_MS)
    forbid_topic_creation(admin._client)
    try:
        await admin.start()
        yield admin
    except (KafkaError, TimeoutError) as error:
        raise translated(settings.bootstrap_servers, error) from error
    finally:
        await admin.close()


async def _describe_topic(
    admin: AIOKafkaAdminClient, settings: KafkaSettings
) -> _FoundTopic | None:
    """Return the topic, or None if the queried broker does not know it.

    Kafka reports a refusal inside a response: it must not pass for a topic without partitions or
    configurations.
    """
    [metadata] = await admin.describe_topics([settings.topic])
    error = for_code(metadata["error_code"])
    if error is UnknownTopicOrPartitionError:
        return None
    if error is not NoError:
        problem = f"the topic {settings.topic} cannot be described"
        raise _refusal(settings, problem, error, None, "Describe on it")
    [response] = await admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, settings.topic)]
    )
    [(code, message, _, _, entries)] = response.resources
    error = for_code(code)
    if error is UnknownTopicOrPartitionError:
        return None
    if error is not NoError:
        problem = f"the configuration of the topic {settings.topic} cannot be described"
        right = "DescribeConfigs on it; without it a compacted topic would go unnoticed"
        raise _refusal(settings, problem, error, message, right)
    return _FoundTopic(
        {each["partition"]: len(each["replicas"]) for each in metadata["partitions"]},
        {name: value for name, value, *_ in entries},
    )


async def _wait_for_controller(admin: AIOKafkaAdminClient, settings: KafkaSettings) -> None:
    """Return once a broker knows the cluster's controller, which aiokafka assumes."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _APPLY_TIMEOUT
    while admin._client.cluster.controller is None:
        if loop.time() > deadline:
            raise kafka_error(
                settings.bootstrap_servers,
                f"the cluster has no controller after {_APPLY_TIMEOUT} s",
            )
        await asyncio.sleep(_POLL_INTERVAL)
        await admin._client.force_metadata_update()


async def _wait_for_topic(
    admin: AIOKafkaAdminClient, settings: KafkaSettings, condition: Callable[[_FoundTopic], bool]
) -> _FoundTopic:
    """Return the topic once a broker reports it and it fulfils `condition`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _APPLY_TIMEOUT
    while (topic := await _describe_topic(admin, settings)) is None or not condition(topic):
        if loop.time() > deadline:
            raise kafka_error(
                settings.bootstrap_servers,
                f"the topic {settings.topic} was created or altered, but a broker still does not "
                f"report it after {_APPLY_TIMEOUT} s",
            )
        await asyncio.sleep(_POLL_INTERVAL)
    return topic


async def _alter_configs(
    admin: AIOKafkaAdminClient, settings: KafkaSettings, configs: Mapping[str, str]
) -> None:
    response = await admin._send_request(IncrementalAlterConfigs(settings.topic, configs))
    [(code, message, *_)] = response.resources
    if code:
        error = for_code(code)
        problem = f"the configuration of the topic {settings.topic} cannot be altered"
        raise _refusal(settings, problem, error, message, "AlterConfigs on it")
    await _wait_for_topic(admin, settings, lambda topic: configs.items() <= topic.configs.items())


async def _add_partitions(admin: AIOKafkaAdminClient, settings: KafkaSettings, total: int) -> None:
    request = CreatePartitionsRequest(
        [(settings.topic, (total, None))], admin._request_timeout_ms, validate_only=False
    )
    await _wait_for_controller(admin, settings)
    response = await admin._send_to_controller(request)
    [(_, code, message)] = response.topic_errors
    if code:
        problem = f"the topic {settings.topic} cannot be extended to {total} partitions"
        raise _refusal(settings, problem, for_code(code), message, "Alter on it")
    await _wait_for_topic(admin, settings, lambda topic: len(topic.replicas) >= total)


def _refusal(
    settings: KafkaSettings, problem: str, error: type[KafkaError], message: str | None, right: str
) -> RetryableError:
    """Return the error of a refusal inside a response; `right` is the one the request needs."""
    text = f"{problem}: {error.__name__}"
    if error in (TopicAuthorizationFailedError, ClusterAuthorizationFailedError):
        text += f": grant {right}"
    elif message:
        text += f": {message}"
    return kafka_error(settings.bootstrap_servers, text)
