"""`publish`: all of a file or a report of what was sent, and nothing twice with its source."""

import asyncio
import gzip
import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, consuming, end_offsets, until, until_stored
from tests.support.occurrences import Fetch
from tests.support.processes import COMMAND, environment, run_cli
from tests.support.topics import make_topic

EVENTS = 25_000
"""More than two windows of unacknowledged records."""
KILLS = 3
STARTING = 6
"""Seconds that a process may take to start and end on a busy machine."""
SOURCE = re.compile(r"repeat the command with --source (\S+)$", re.MULTILINE)


def event(number: int) -> dict[str, object]:
    return {
        "executionId": f"execution-{number % 100}",
        "metadata": {"name": f"任-{number}.1", "namespace": "tenant"},
        "reason": "启动##ActionStart",
        "message": "x" * 200,
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "type": "Normal",
        "elemType": "KubeDAG.init",
        "elemId": "job-a",
        "actionName": "create",
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of events, one a line, each with a name of its own."""
    file = tmp_path_factory.mktemp("events") / "events.jsonl"
    file.write_text("".join(f"{json.dumps(event(number))}\n" for number in range(EVENTS)))
    return file


@pytest.fixture
async def topic(settings: Settings) -> Settings:
    await make_topic(settings, 3)
    return settings


@pytest.fixture
def full() -> Iterator[int]:
    """A descriptor of a full disk."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


async def start(
    settings: Settings, *arguments: str | Path, stdout: int, **variables: str
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        "publish",
        *map(str, arguments),
        env=environment(settings, **variables),
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Return the exit code and standard error."""
    async with asyncio.timeout(DEADLINE):
        _, error = await process.communicate()
    return process.returncode, error.decode()


async def records(settings: Settings) -> int:
    return sum((await end_offsets(settings)).values())


async def test_a_closed_pipe_stops_nothing(topic: Settings, file: Path) -> None:
    """As `execution-events publish --json FILE | head -1` closes it."""
    reading, writing = os.pipe()
    process = await start(topic, "--json", file, stdout=writing)
    os.close(writing)
    await asyncio.to_thread(os.read, reading, 1)
    os.close(reading)
    code, error = await ended(process)
    assert await records(topic) == EVENTS
    assert code == 0
    assert error.splitlines()[-2:] == [
        "execution-events: cannot write to standard output: Broken pipe",
        "execution-events: acknowledged: 25000 events",
    ]


@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["summary", "json"])
async def test_a_full_disk_behind_standard_output_stops_nothing(
    topic: Settings, file: Path, full: int, arguments: tuple[str, ...]
) -> None:
    code, error = await ended(await start(topic, *arguments, file, stdout=full))
    assert await records(topic) == EVENTS
    assert code == 0
    assert error.splitlines()[-2:] == [
        "execution-events: cannot write to standard output: No space left on device",
        "execution-events: acknowledged: 25000 events",
    ]


async def test_a_name_that_the_terminal_cannot_show_stops_nothing(
    topic: Settings, file: Path
) -> None:
    process = await start(
        topic, "--json", file, stdout=asyncio.subprocess.PIPE, PYTHONIOENCODING="ascii"
    )
    async with asyncio.timeout(DEADLINE):
        output, error = await process.communicate()
    assert process.returncode == 0, error
    names = [json.loads(line)["name"] for line in output.splitlines()]
    assert names == [f"任-{number}.1" for number in range(EVENTS)]


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_run_says_what_was_sent_and_can_be_completed(
    topic: Settings, file: Path, fetch: Fetch, stop_signal: signal.Signals
) -> None:
    process = await start(topic, file, stdout=asyncio.subprocess.DEVNULL)
    assert process.stderr is not None
    # Written once Kafka is reached, before the first record is sent.
    source = SOURCE.findall((await process.stderr.readline()).decode())[0]
    # It is stopped while the test looks, or it could have sent all by then.
    process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(DEADLINE):
        while not await records(topic):
            process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.01)
            process.send_signal(signal.SIGSTOP)
    process.send_signal(stop_signal)
    process.send_signal(signal.SIGCONT)
    code, error = await ended(process)
    assert code == 1
    interrupted, done, remedy = error.splitlines()
    assert interrupted == "execution-events: interrupted"
    assert re.match(r"execution-events: acknowledged: \d+ of 25000 events", done)
    assert remedy == (
        "execution-events: to send the rest, counting nothing twice, repeat the command with"
        f" --source {source}"
    )
    async with consuming(topic):
        assert await ended(await start(topic, "--source", source, file, stdout=2)) == (0, "")
        await until_stored(topic)
    assert await counts(fetch) == [1] * EVENTS


async def test_a_file_sent_again_after_kills_counts_once(
    topic: Settings, file: Path, fetch: Fetch
) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    source, killed = None, 0
    async with consuming(topic):
        for _ in range(KILLS):
            again = () if source is None else ("--source", source)
            before = await records(topic)
            process = await start(topic, *again, file, stdout=asyncio.subprocess.DEVNULL)

            async def sent(before: int = before) -> bool:
                return await records(topic) > before

            await until(sent, "records are sent")
            await asyncio.sleep(rng.uniform(0, 0.3))
            # A fast one has sent the file by now.
            if process.returncode is None:
                process.kill()
            code, error = await ended(process)
            killed += code == -signal.SIGKILL
            source = source or SOURCE.findall(error)[0]
        assert killed, f"seed {seed}"
        assert source is not None
        assert await ended(await start(topic, "--source", source, file, stdout=2)) == (0, "")
        await until_stored(topic)
    assert await counts(fetch) == [1] * EVENTS, f"seed {seed}"


async def counts(fetch: Fetch) -> list[int]:
    return [row["count"] for row in await fetch("SELECT count FROM event")]


async def test_a_source_of_another_file_is_refused(
    topic: Settings, file: Path, tmp_path: Path
) -> None:
    """Its events would be dropped as duplicates."""
    _, error = await ended(await start(topic, file, stdout=asyncio.subprocess.DEVNULL))
    [source] = SOURCE.findall(error)
    other = tmp_path / "other.json"
    other.write_text(json.dumps([event(0)]))
    code, error = await ended(await start(topic, "--source", source, other, stdout=2))
    assert code == 2
    assert error.startswith("execution-events: --source: nothing was published")
    assert await records(topic) == EVENTS


async def test_a_compressed_file_is_published(topic: Settings, tmp_path: Path) -> None:
    content = gzip.compress(json.dumps([event(0), event(1)]).encode())
    file = tmp_path / "events.json.gz"
    file.write_bytes(content)
    env = environment(topic)
    assert await run_cli("publish", str(file), env=env) == "acknowledged: 2 events\n"
    assert await run_cli("publish", env=env, stdin=content) == "acknowledged: 2 events\n"
    assert await records(topic) == 4


async def test_the_timeout_bounds_a_silent_broker(tmp_path: Path) -> None:
    file = tmp_path / "events.json"
    file.write_text(json.dumps([event(0)]))
    # The system accepts connections, and nothing answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        settings = configured(kafka_bootstrap_servers=address)
        begin = time.monotonic()
        code, error = await ended(await start(settings, "--timeout", "2", file, stdout=2))
        elapsed = time.monotonic() - begin
    assert (code, error.splitlines()) == (
        1,
        [
            f"execution-events: Kafka at {address}: no answer within 2 s",
            "execution-events: nothing was published",
        ],
    )
    assert elapsed < 2 + STARTING
