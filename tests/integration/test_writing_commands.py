"""Commands that change something: they are judged by their work, and say how far it got."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest

from execution_events import Publisher
from execution_events.publisher.spool.directory import list_spools
from execution_events.settings import Settings
from execution_events.store.write.batches import BatchWriter
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, end_offsets, until
from tests.support.databases import Database, administrator
from tests.support.processes import COMMAND, environment
from tests.support.published import events
from tests.support.records import batch, log, occurrence, refused


@pytest.fixture
def full() -> Iterator[int]:
    """A descriptor of a full disk."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
async def spool(tmp_path: Path) -> Path:
    """A directory with a spool of three events that no process uses."""
    directory = tmp_path / "spool"
    worker = configured(
        kafka_bootstrap_servers="127.0.0.1:1", spool_dir=str(directory), close_timeout=1
    )
    async with Publisher(worker) as publisher:
        for each in events(3):
            await publisher.publish(each)
    return directory


class Command(NamedTuple):
    arguments: str
    done: str
    check: str
    """A query that returns true once the work is done; empty for work in Kafka."""


COMMANDS = {
    "dead-letters discard": Command(
        "dead-letters discard --all",
        "discarded: 1",
        "SELECT count(*) = 1 FROM dead_letter WHERE discarded_at IS NOT NULL",
    ),
    "dead-letters retry": Command(
        "dead-letters retry --all",
        "retried: 1",
        "SELECT count(*) = 1 FROM dead_letter WHERE retried_at IS NOT NULL",
    ),
    "prune": Command(
        "prune --older-than 90d",
        "deleted: 1 executions with 1 events, unchanged since ",
        "SELECT count(*) = 0 FROM execution",
    ),
    "migrate": Command("migrate", "up to date", "SELECT true"),
    "topic create": Command(
        "topic create --replication 1 --min-insync-replicas 1", "created: {topic}", ""
    ),
    "spool drain": Command("spool drain {spool}", "sent: 3 events", ""),
}


@pytest.mark.parametrize("name", COMMANDS)
async def test_a_full_disk_behind_standard_output_stops_no_work(
    settings: Settings,
    database: Database,
    writer: BatchWriter,
    owner: asyncpg.Connection,
    spool: Path,
    full: int,
    name: str,
) -> None:
    command = COMMANDS[name]
    await writer.store(batch(log([occurrence(execution_id="old")], partition=0)))
    await owner.execute("UPDATE execution SET changed_at = now() - interval '91 days'")
    await writer.store(refused(log([occurrence(execution_id="other")], partition=1)))
    # `topic create` makes a new one.
    topic = f"{settings.kafka.topic}-new" if name == "topic create" else settings.kafka.topic
    changed = configured(settings, topic=topic, database_url=database.owner)
    async with (
        started(changed, command.arguments.format(spool=spool), stdout=full) as process,
        asyncio.timeout(DEADLINE),
    ):
        _, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    printed = [line for line in error.decode().splitlines() if not line.startswith("{")]
    assert printed[0] == (
        "execution-events: cannot write to standard output: No space left on device"
    )
    assert printed[1].startswith(f"execution-events: {command.done.format(topic=topic)}")
    if command.check:
        assert await owner.fetchval(command.check)
    else:
        records = {"topic create": 0, "spool drain": 3}[name]
        assert sum((await end_offsets(changed)).values()) == records


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_drain_says_what_it_sent(
    settings: Settings, spool: Path, stop_signal: signal.Signals
) -> None:
    # The system accepts connections, and nothing answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        changed = configured(settings, kafka_bootstrap_servers=address)
        async with started(changed, f"spool drain {spool}") as process:

            async def draining() -> bool:
                return list_spools(spool)[0].owned

            await until(draining, "the spool is in use")
            assert await interrupted(process, stop_signal) == [
                "interrupted",
                "sent: 0 events",
                "unsent events stay in the spools; repeat the command for the rest",
            ]
    [left] = list_spools(spool)
    assert left.summary is not None
    assert left.summary.pending == 3


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_migration_says_how_to_continue(
    settings: Settings, database: Database, stop_signal: signal.Signals
) -> None:
    async with administrator(database.owner) as holder, holder.transaction():
        await holder.execute("LOCK TABLE execution_events.schema_version")
        async with started(configured(settings, database_url=database.owner), "migrate") as process:

            async def waiting() -> bool:
                return bool(
                    await holder.fetchval(
                        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation ="
                        " 'execution_events.schema_version'::regclass"
                    )
                )

            await until(waiting, "migrate waits for the lock")
            assert await interrupted(process, stop_signal) == [
                "interrupted",
                "each migration is applied whole or not at all; repeat the command for the rest",
            ]


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_topic_create_says_how_to_continue(
    settings: Settings, stop_signal: signal.Signals
) -> None:
    nowhere = configured(settings, kafka_bootstrap_servers="127.0.0.1:1")
    async with started(nowhere, "topic create --wait 60s") as process:
        assert process.stderr is not None
        assert b"server_unavailable" in await process.stderr.readline()
        assert await interrupted(process, stop_signal) == [
            "interrupted",
            "the topic may have been created or changed: repeat the command to compare it",
        ]


@asynccontextmanager
async def started(
    settings: Settings, command: str, stdout: int = asyncio.subprocess.DEVNULL
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *command.split(),
        env=environment(settings),
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def interrupted(
    process: asyncio.subprocess.Process, stop_signal: signal.Signals
) -> list[str]:
    """Signal the process; return what it says then, without logs, and check its exit code."""
    process.send_signal(stop_signal)
    async with asyncio.timeout(DEADLINE):
        _, error = await process.communicate()
    assert process.returncode == 1, error.decode()
    printed = [line for line in error.decode().splitlines() if not line.startswith("{")]
    return [line.removeprefix("execution-events: ") for line in printed]
