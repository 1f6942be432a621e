"""`topic create` and `topic accept`, and the consumer's check of the topic."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from execution_events.errors import RetryableError
from execution_events.kafka.topic import check_topic, open_admin
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, consuming, stored_offsets, until, until_stored
from tests.support.guarded_broker import GuardedBroker, guarded_broker
from tests.support.occurrences import Fetch, counts, publish, ready
from tests.support.processes import COMMAND, environment, run_cli
from tests.support.topics import CREATE_TIME, make_topic

ONE_COPY = ("--replication", "1", "--min-insync-replicas", "1")


@pytest.fixture
def new(settings: Settings) -> Settings:
    """Settings with a topic that does not exist."""
    return configured(settings, topic=f"{settings.kafka.topic}-new")


@pytest.fixture(scope="module")
async def guarded() -> AsyncIterator[GuardedBroker]:
    """A broker with an authorizer that creates the topics named in metadata requests."""
    async with guarded_broker({"auto.create.topics.enable": "true"}) as broker:
        yield broker


async def create(settings: Settings, *options: str, code: int = 0) -> list[str]:
    """Return the lines printed by `topic create`."""
    output = await run_cli(
        "topic", "create", *ONE_COPY, *options, env=environment(settings), code=code
    )
    return output.splitlines()


async def configs_of(settings: Settings) -> Mapping[str, str]:
    async with open_admin(settings.kafka) as admin:
        [answer] = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, settings.kafka.topic)]
        )
    return {entry[0]: entry[1] for entry in answer.resources[0][4]}


async def topics_of(settings: Settings) -> list[str]:
    async with open_admin(settings.kafka) as admin:
        names: list[str] = await admin.list_topics()
        return names


async def test_a_topic_is_created_with_the_required_configuration(new: Settings) -> None:
    options = ("--partitions", "2", "--retention-days", "7")
    assert await create(new, *options) == [f"created: {new.kafka.topic}"]
    assert await create(new, *options) == [f"exists and matches: {new.kafka.topic}"]
    assert await create(new, *options, "--alter") == [f"exists and matches: {new.kafka.topic}"]
    assert await check_topic(new.kafka) == [0, 1]
    config = await configs_of(new)
    assert config["min.insync.replicas"] == "1"
    assert config["cleanup.policy"] == "delete"
    assert config["unclean.leader.election.enable"] == "false"
    assert config["retention.ms"] == str(7 * 24 * 60 * 60 * 1000)
    assert config["message.timestamp.type"] == "LogAppendTime"


async def test_an_existing_topic_is_compared_and_not_changed(new: Settings) -> None:
    await make_topic(new, 2, CREATE_TIME | {"cleanup.policy": "compact"})
    assert await create(new, "--partitions", "3", code=1) == [
        f"exists and differs: {new.kafka.topic}",
        "    partitions: is 2, expected 3",
        "    cleanup.policy: is compact, expected delete",
        "    message.timestamp.type: is CreateTime, expected LogAppendTime",
        "nothing was changed; to change it, add --alter",
    ]
    assert (await configs_of(new))["cleanup.policy"] == "compact"


async def test_an_existing_topic_is_altered_and_keeps_its_other_configurations(
    new: Settings,
) -> None:
    await make_topic(new, 2, CREATE_TIME | {"max.message.bytes": "2000000"})
    altered = await create(new, "--partitions", "3", "--retention-days", "7", "--alter")
    assert altered == [
        f"exists and differs: {new.kafka.topic}",
        "    retention.ms: changed from 2592000000 to 604800000",
        "    message.timestamp.type: changed from CreateTime to LogAppendTime",
        "    partitions: changed from 2 to 3",
    ]
    config = await configs_of(new)
    assert config["max.message.bytes"] == "2000000"
    assert config["message.timestamp.type"] == "LogAppendTime"
    again = await create(new, "--partitions", "3", "--retention-days", "7")
    assert again == [f"exists and matches: {new.kafka.topic}"]


async def test_alter_reports_the_differences_it_cannot_remove(new: Settings) -> None:
    await make_topic(new, 2, CREATE_TIME)
    options = ("--partitions", "1", "--replication", "3", "--min-insync-replicas", "2", "--alter")
    expected = [
        "    partitions: is 2, expected 1, cannot be changed: partitions cannot be removed",
        "    replication: is 1, expected 3, cannot be changed: "
        "Kafka's kafka-reassign-partitions.sh changes it",
        "    min.insync.replicas: is 1, expected 2, cannot be changed: not before replication is 3",
    ]
    first, changed, *kept = await create(new, *options, code=1)
    assert first == f"exists and differs: {new.kafka.topic}"
    assert changed == "    message.timestamp.type: changed from CreateTime to LogAppendTime"
    assert kept == expected
    assert (await create(new, *options, code=1))[1:] == expected
    # The topic still accepts records.
    await publish(new, range(3))


async def test_concurrent_creations_create_the_topic_once(new: Settings) -> None:
    for number in range(5):
        settings = configured(new, topic=f"{new.kafka.topic}-{number}")
        outcomes = await asyncio.gather(*(make_topic(settings, 2) for _ in range(3)))
        assert sorted(map(repr, outcomes)) == ["None", "[]", "[]"]


async def test_min_insync_replicas_above_the_replication_are_refused(new: Settings) -> None:
    await create(new, "--min-insync-replicas", "2", code=2)
    assert new.kafka.topic not in await topics_of(new)


async def test_a_topic_with_a_hidden_configuration_is_not_consumed(
    guarded: GuardedBroker, settings: Settings, unused_port: int, fetch: Fetch
) -> None:
    """The topic may be compacted."""
    limited = configured(guarded.limited(settings), management_port=unused_port)
    await make_topic(guarded.unlimited(settings), 1)
    await publish(guarded.unlimited(settings), [1])
    with pytest.raises(RetryableError, match=r"^Kafka at .*TopicAuthorization.*grant Describe on"):
        await check_topic(limited.kafka)
    await guarded.grant(limited.kafka.topic, "Read")
    await guarded.grant(limited.consumer.group, "Read", resource="group")
    with pytest.raises(RetryableError, match=r"^Kafka at .*TopicAuthorization.*DescribeConfigs"):
        await check_topic(limited.kafka)
    async with consuming(limited):

        async def reported() -> bool:
            return "grant DescribeConfigs" in (await ready(unused_port))[1]

        await until(reported, "readiness names the right")
        assert await counts(fetch) == Counter()
        await guarded.grant(limited.kafka.topic, "DescribeConfigs")
        await until_stored(guarded.unlimited(settings))
    assert await counts(fetch) == Counter([1])


@pytest.mark.parametrize(
    ("granted", "options", "missing"),
    [
        ((), (), "Create"),
        (("Create",), (), "Describe"),
        (("Create", "Describe"), (), "DescribeConfigs"),
        (("Create", "Describe", "DescribeConfigs"), ("--alter",), "AlterConfigs"),
        (("Create", "Describe", "AlterConfigs"), ("--alter",), "Alter"),
    ],
)
async def test_topic_create_names_the_missing_right(
    guarded: GuardedBroker,
    new: Settings,
    granted: tuple[str, ...],
    options: tuple[str, ...],
    missing: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    await make_topic(guarded.unlimited(new), 1, CREATE_TIME)
    await guarded.grant(new.kafka.topic, *granted)
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("topic", "create", *ONE_COPY, "--partitions", "2", *options),
        env=environment(guarded.limited(new)),
    )
    assert await process.wait() == 2
    # aiokafka first warns of each connection with a password and without TLS.
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("{")]
    assert lines[0].startswith("execution-events: Kafka at 127.0.0.1:")
    assert f"AuthorizationFailedError: grant {missing} on it" in lines[0]
    # The changes before the refusal are listed too.
    assert any("changed from" in line for line in lines[1:]) == (missing == "Alter")


async def test_no_request_creates_the_topic(
    guarded: GuardedBroker, settings: Settings, unused_port: int
) -> None:
    settings = configured(guarded.unlimited(settings), management_port=unused_port)
    async with open_admin(settings.kafka) as admin:
        [described] = await admin.describe_topics([settings.kafka.topic])
        assert described["error_code"] == 3
    await run_cli("topic", "accept", env=environment(settings), code=1)
    async with consuming(settings):

        async def reported() -> bool:
            return "topic create" in (await ready(unused_port))[1]

        await until(reported, "readiness reports the missing topic")
    assert settings.kafka.topic not in await topics_of(settings)


async def test_a_consumer_does_not_recreate_a_deleted_topic(
    guarded: GuardedBroker, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="aiokafka")
    settings = guarded.unlimited(settings)
    await make_topic(settings, 3)
    await publish(settings, range(30))
    async with consuming(settings):
        await until_stored(settings)
        async with open_admin(settings.kafka) as admin:
            await admin.delete_topics([settings.kafka.topic])

        async def missed() -> bool:
            # aiokafka logs it after its next metadata request.
            return f"Topic {settings.kafka.topic} not found in cluster metadata" in caplog.text

        await until(missed, "the consumer has requested the topic's metadata")
    assert settings.kafka.topic not in await topics_of(settings)


async def test_altering_the_timestamp_type_changes_no_fingerprint(
    new: Settings, fetch: Fetch, unused_port: int
) -> None:
    settings = configured(new, management_port=unused_port)
    await make_topic(settings, 3, CREATE_TIME)
    await publish(settings, range(30))

    async def is_ready() -> bool:
        return (await ready(unused_port))[0] == 200

    async with consuming(settings):
        await until_stored(settings)
        altered = await create(settings, "--partitions", "3", "--alter")
        assert altered[1:] == [
            "    message.timestamp.type: changed from CreateTime to LogAppendTime"
        ]
        await publish(settings, range(30, 40))
        await until_stored(settings)
    for numbers in (range(40, 50), range(50, 60)):
        # The last stored record was written before the change, then after it.
        async with consuming(settings):
            await until(is_ready, "ready with the stored log")
            await publish(settings, numbers)
            await until_stored(settings)
    assert await counts(fetch) == Counter(range(60))


@pytest.mark.parametrize(
    ("begin", "again"), [("beginning", [*range(30)]), ("end", [])], ids=["beginning", "end"]
)
async def test_another_log_is_accepted_while_the_consumer_runs(
    settings: Settings,
    fetch: Fetch,
    unused_port: int,
    begin: str,
    again: list[int],
) -> None:
    settings = configured(settings, management_port=unused_port)
    await publish(settings, range(60))
    async with consuming(settings):
        await until_stored(settings)
    async with open_admin(settings.kafka) as admin:
        await admin.delete_topics([settings.kafka.topic])
    await _recreate(settings)
    await publish(settings, range(30))
    env = environment(settings)

    async with consuming(settings):

        async def halted() -> bool:
            return "is halted" in (await ready(unused_port))[1]

        await until(halted, "the consumer halts")
        before = await stored_offsets(settings)
        shown = await run_cli("topic", "accept", "--from", begin, env=env, code=1)
        assert "to accept the log, add --yes" in shown
        assert await stored_offsets(settings) == before
        accepted = await run_cli("topic", "accept", "--from", begin, "--yes", env=env)
        assert accepted.count("accepted") == shown.count("partition ")
        await until_stored(settings)
        await publish(settings, range(30))
        await until_stored(settings)
        assert await run_cli("topic", "accept", env=env) == "nothing differs\n"
    assert await counts(fetch) == Counter([*range(60), *again, *range(30)])


async def _recreate(settings: Settings) -> None:
    """Create the topic as soon as Kafka has removed the deleted one."""

    async def created() -> bool:
        return await make_topic(settings, 3) is None

    async with asyncio.timeout(60):
        await until(created, "the topic exists again")


@pytest.mark.parametrize("command", ["topic create", "topic accept", "consumer"])
async def test_a_refused_login_to_kafka_ends_a_command_with_what_to_change(
    guarded: GuardedBroker, settings: Settings, command: str
) -> None:
    wrong = configured(guarded.limited(settings), kafka_sasl_password="wrong")
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *command.split(), env=environment(wrong), stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE):
        _, error = await process.communicate()
    [line] = [line for line in error.decode().splitlines() if line.startswith("execution-events:")]
    assert process.returncode == 2
    assert line.startswith(f"execution-events: Kafka at {wrong.kafka.bootstrap_servers}: ")
    assert line.endswith(
        ": correct one of EXECUTION_EVENTS_KAFKA_SASL_MECHANISM,"
        " EXECUTION_EVENTS_KAFKA_SASL_USERNAME, EXECUTION_EVENTS_KAFKA_SASL_PASSWORD"
    )
