"""`topic`: made as the guarantees need it; another log is accepted only when it is said."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from execution_events.consumer.topic import check_topic, create_topic, open_admin
from execution_events.settings import Settings
from tests.support.consumers import consuming, stored_offsets, until, until_stored
from tests.support.occurrences import Fetch, counts, publish, ready
from tests.support.processes import environment, run_cli


async def test_it_is_created_as_the_guarantees_need_it(settings: Settings) -> None:
    new = replace(settings, topic=f"{settings.topic}-new")
    options = ("--partitions", "2", "--replication", "1", "--min-insync-replicas", "1")
    create = ("topic", "create", *options, "--retention-days", "7")
    assert await run_cli(*create, env=environment(new)) == f"created: {new.topic}\n"
    again = await run_cli(*create, env=environment(new))
    assert again == f"exists, left as it is: {new.topic}\n"
    assert await check_topic(new) == [0, 1]
    async with open_admin(new) as admin:
        [answer] = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, new.topic)]
        )
    config = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    assert config["min.insync.replicas"] == "1"
    assert config["cleanup.policy"] == "delete"
    assert config["unclean.leader.election.enable"] == "false"
    assert config["retention.ms"] == str(7 * 24 * 60 * 60 * 1000)


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
    settings = replace(settings, management_port=unused_port)
    await publish(settings, range(60))
    async with consuming(settings):
        await until_stored(settings)
    async with open_admin(settings) as admin:
        await admin.delete_topics([settings.topic])
    await _recreate(settings)
    await publish(settings, range(30))
    env = environment(settings)

    async with consuming(settings):

        async def halted() -> bool:
            return "is halted" in (await ready(unused_port))[1]

        await until(halted, "the consumer halts")
        before = await stored_offsets(settings)
        shown = await run_cli("topic", "accept", "--from", begin, env=env, code=1)
        assert "repeat with --yes" in shown
        assert await stored_offsets(settings) == before
        accepted = await run_cli("topic", "accept", "--from", begin, "--yes", env=env)
        assert accepted.count("accepted") == shown.count("partition ")
        await until_stored(settings)
        await publish(settings, range(30))
        await until_stored(settings)
        assert await run_cli("topic", "accept", env=env) == "nothing differs\n"
    assert await counts(fetch) == Counter([*range(60), *again, *range(30)])


async def _recreate(settings: Settings) -> None:
    """Create the topic as soon as Kafka has forgotten the deleted one."""

    async def created() -> bool:
        return await create_topic(
            settings, partitions=3, replication=1, min_insync_replicas=1, retention_ms=10**9
        )

    async with asyncio.timeout(60):
        await until(created, "the topic is there again")
