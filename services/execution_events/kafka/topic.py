"""The topic: made and altered to what the guarantees need, and checked before it is read."""

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
from execution_events.kafka.protocol import IncrementalAlterConfigs, forbid_topic_creation
from execution_events.settings import KafkaSettings

DAY_MS = 24 * 60 * 60 * 1000
PARTITIONS, REPLICATION = "partitions", "replication"
_MIN_INSYNC_REPLICAS = "min.insync.replicas"
_REQUEST_TIMEOUT_MS = 10_000
"""Until a broker that does not answer is given up."""
_APPLY_TIMEOUT = 30
"""Seconds until a broker must show what Kafka has accepted."""
_POLL_INTERVAL = 0.1


class Difference(NamedTuple):
    """A property of an existing topic that is not as wanted.

    `name` is `PARTITIONS`, `REPLICATION`, or the name of a configuration.
    """

    name: str
    found: str
    wanted: str


class _Wanted(NamedTuple):
    partitions: int
    replication: int
    configs: Mapping[str, str]

    def differences(self, topic: "_Topic") -> list[Difference]:
        wanted = {
            PARTITIONS: str(self.partitions),
            REPLICATION: str(self.replication),
            **self.configs,
        }
        found = {
            PARTITIONS: str(len(topic.replicas)),
            # More than one number while replicas are moved.
            REPLICATION: ", ".join(map(str, sorted(set(topic.replicas.values())))),
            **topic.configs,
        }
        return [
            Difference(name, found.get(name, "nothing"), value)
            for name, value in wanted.items()
            if found.get(name) != value
        ]


class _Topic(NamedTuple):
    """The topic as one broker knows it: the replicas of each partition, and all configurations."""

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
    """Create the topic, and return None; `configs` go above what the guarantees need.

    One that exists is left as it is: return how it differs from what was asked for.
    """
    wanted = _Wanted(
        partitions,
        replication,
        {
            _MIN_INSYNC_REPLICAS: str(min_insync_replicas),
            "unclean.leader.election.enable": "false",
            "cleanup.policy": "delete",
            "retention.ms": str(retention_ms),
            # By the producer's own time, Kafka would remove the records of an old spool at once,
            # and refuse those of a clock that is ahead.
            "message.timestamp.type": "LogAppendTime",
        }
        | dict(configs or {}),
    )
    topic = NewTopic(settings.topic, partitions, replication, topic_configs=dict(wanted.configs))
    async with open_admin(settings) as admin:
        await _until_controlled(admin, settings)
        response = await admin.create_topics([topic])
        [(_, code, message, *_)] = response.topic_errors
        error = for_code(code)
        if error is NoError:
            return None
        if error is not TopicAlreadyExistsError:
            problem = f"the topic {settings.topic} cannot be created"
            raise _refusal(settings, problem, error, message, "Create on it")
        # Another may have created it at this moment, and not every broker know it yet.
        found = await _until_described(admin, settings, lambda _: True)
        return wanted.differences(found)


def obstacles(differences: Collection[Difference]) -> dict[Difference, str]:
    """The differences that `alter_topic` cannot remove, each with the reason."""
    replication = next((each for each in differences if each.name == REPLICATION), None)
    found: dict[Difference, str] = {}
    for each in differences:
        if each.name == REPLICATION:
            found[each] = "Kafka's kafka-reassign-partitions.sh changes it"
        elif each.name == PARTITIONS and int(each.wanted) < int(each.found):
            found[each] = "partitions cannot be removed"
        elif each.name == _MIN_INSYNC_REPLICAS and replication is not None:
            # A topic that asks for more replicas than it has takes no record any more.
            found[each] = f"not before {REPLICATION} is {replication.wanted}"
    return found


async def alter_topic(
    settings: KafkaSettings, differences: Collection[Difference]
) -> AsyncIterator[Difference]:
    """Remove the differences that have no obstacle; yield each once a broker shows it as wanted.

    The topic's other configurations stay as they are.
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
    """The topic's partitions.

    Raises `RetryableError` while the topic is missing or cannot be described, `HaltError` where
    it is compacted.
    """
    async with open_admin(settings) as admin:
        topic = await _describe(admin, settings)
    if topic is None:
        raise RetryableError(
            f"Kafka at {settings.bootstrap_servers}: the topic {settings.topic} does not "
            "exist: run `execution-events topic create`"
        )
    if "compact" in topic.configs.get("cleanup.policy", ""):
        raise HaltError(
            f"the topic {settings.topic} is compacted, so records are missing from its log: "
            "set its cleanup.policy to delete"
        )
    return sorted(topic.replicas)


@asynccontextmanager
async def open_admin(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client; Kafka's errors come out as `RetryableError`."""
    admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=_REQUEST_TIMEOUT_MS)
    forbid_topic_creation(admin._client)
    try:
        await admin.start()
        yield admin
    except (KafkaError, TimeoutError) as error:
        text = str(error) or type(error).__name__
        raise RetryableError(f"Kafka at {settings.bootstrap_servers}: {text}") from error
    finally:
        await admin.close()


async def _describe(admin: AIOKafkaAdminClient, settings: KafkaSettings) -> _Topic | None:
    """The topic; None where the broker that was asked knows none.

    Kafka's refusals come inside of its responses, and must not pass for a topic without
    partitions or configurations.
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
    return _Topic(
        {each["partition"]: len(each["replicas"]) for each in metadata["partitions"]},
        {name: value for name, value, *_ in entries},
    )


async def _until_controlled(admin: AIOKafkaAdminClient, settings: KafkaSettings) -> None:
    """Return once a broker knows the cluster's controller, which aiokafka takes for granted."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _APPLY_TIMEOUT
    while admin._client.cluster.controller is None:
        if loop.time() > deadline:
            raise RetryableError(
                f"Kafka at {settings.bootstrap_servers}: the cluster has had no controller "
                f"for {_APPLY_TIMEOUT} s"
            )
        await asyncio.sleep(_POLL_INTERVAL)
        await admin._client.force_metadata_update()


async def _until_described(
    admin: AIOKafkaAdminClient, settings: KafkaSettings, condition: Callable[[_Topic], bool]
) -> _Topic:
    """The topic, once a broker shows one that fulfils `condition`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _APPLY_TIMEOUT
    while (topic := await _describe(admin, settings)) is None or not condition(topic):
        if loop.time() > deadline:
            raise RetryableError(
                f"Kafka at {settings.bootstrap_servers}: the topic {settings.topic} was "
                f"created or altered, and a broker has not shown it for {_APPLY_TIMEOUT} s"
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
    await _until_described(admin, settings, lambda topic: configs.items() <= topic.configs.items())


async def _add_partitions(admin: AIOKafkaAdminClient, settings: KafkaSettings, total: int) -> None:
    request = CreatePartitionsRequest(
        [(settings.topic, (total, None))], admin._request_timeout_ms, validate_only=False
    )
    await _until_controlled(admin, settings)
    response = await admin._send_to_controller(request)
    [(_, code, message)] = response.topic_errors
    if code:
        problem = f"the topic {settings.topic} cannot get {total} partitions"
        raise _refusal(settings, problem, for_code(code), message, "Alter on it")
    await _until_described(admin, settings, lambda topic: len(topic.replicas) >= total)


def _refusal(
    settings: KafkaSettings, problem: str, error: type[KafkaError], message: str | None, right: str
) -> RetryableError:
    """The error for a refusal inside of a response; `right` is what the request needs."""
    text = f"Kafka at {settings.bootstrap_servers}: {problem}: {error.__name__}"
    if error in (TopicAuthorizationFailedError, ClusterAuthorizationFailedError):
        return RetryableError(f"{text}: grant {right}")
    return RetryableError(f"{text}: {message}" if message else text)
