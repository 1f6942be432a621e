"""The end of a worker's process, and its standard error."""

import asyncio
import subprocess
import sys

import pytest

from execution_events.embedded import EmbeddedKafka
from execution_events.errors import RetryableError
from execution_events.publisher import Publisher
from execution_events.publisher.delivery import connection
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE
from tests.support.processes import environment
from tests.support.published import administrator, events, silent, topic_on

WORKER = """
import asyncio, logging, sys
from execution_events import Publisher, sync
from tests.support.published import events

logging.basicConfig()


async def unclosed(*, acknowledged):
    publisher = await Publisher.from_settings().__aenter__()
    publishing = [asyncio.create_task(publisher.publish(event)) for event in events(5)]
    await asyncio.wait(publishing, timeout=None if acknowledged else 0)


def unclosed_by_threads():
    publisher = sync.Publisher.from_settings().__enter__()
    for event in events(5):
        publisher.publish(event)


async def outage():
    async with Publisher.from_settings() as publisher:
        await publisher.publish(events(1)[0])
        print("published", flush=True)
        sys.stdin.readline()
        await asyncio.gather(*map(publisher.publish, events(500)), return_exceptions=True)
"""
LEFT = "WARNING:execution_events.publisher.publisher:publisher_not_closed  events=5 next_step="


async def start(program: str, settings: Settings) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER + program),
        env=environment(settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("program", "logged"),
    [
        ("asyncio.run(unclosed(acknowledged=False))", [LEFT]),
        ("asyncio.run(unclosed(acknowledged=True))", []),
        ("unclosed_by_threads()", []),
    ],
)
async def test_an_exit_without_a_close_logs_what_kafka_has_not_acknowledged(
    settings: Settings, program: str, logged: list[str]
) -> None:
    process = await start(program, settings)
    async with asyncio.timeout(DEADLINE):
        _, errors = await process.communicate()
    assert process.returncode == 0
    lines = errors.decode().splitlines()
    assert [line.partition("they may")[0] for line in lines] == logged


@pytest.mark.parametrize("spooled", [False, True])
async def test_an_outage_leaves_nothing_but_log_records_on_standard_error(
    own_kafka: EmbeddedKafka, settings: Settings, spooled: bool, tmp_path: object
) -> None:
    settings = configured(
        await topic_on(own_kafka, settings),
        publish_timeout=2,
        close_timeout=1,
        spool_dir=str(tmp_path) if spooled else None,
    )
    process = await start("asyncio.run(outage())", settings)
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        assert await process.stdout.readline() == b"published\n"
        with silent(own_kafka):
            _, errors = await process.communicate(b"\n")
    assert process.returncode == 0
    lines = errors.decode().splitlines()
    assert [line for line in lines if not line.startswith(("WARNING:", "ERROR:"))] == []
    assert sum("events_undelivered" in line for line in lines) == 1


async def test_a_topic_deleted_meanwhile_is_named(
    own_kafka: EmbeddedKafka, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REQUEST_TIMEOUT", 1)
    settings = configured(await topic_on(own_kafka, settings), publish_timeout=10)
    async with administrator(settings) as client, Publisher(settings) as publisher:

        async def publish_until_failure() -> None:
            async with asyncio.timeout(DEADLINE):
                while True:
                    await publisher.publish(events(1)[0])

        await publisher.publish(events(1)[0])
        await client.delete_topics([settings.kafka.topic])
        with pytest.raises(RetryableError) as raised:
            await publish_until_failure()
    assert str(raised.value) == (
        f"Kafka has acknowledged nothing for 10 s: Kafka at {settings.kafka.bootstrap_servers}: "
        f"the topic {settings.kafka.topic} does not exist: run `execution-events topic create`"
    )
