"""The examples run as they are."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, consuming, until_stored
from tests.support.databases import Database
from tests.support.processes import environment
from tests.support.published import occurrences
from tests.support.readers import reading

EXAMPLES = Path(__file__).parents[1] / "examples"


async def run(name: str, *arguments: str, settings: Settings | None = None) -> list[str]:
    """Run an example to its end, and return the lines that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(EXAMPLES / name), *arguments),
        env=environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        output, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    return output.decode().splitlines()


@pytest.fixture
def worker(settings: Settings) -> Settings:
    """A worker's settings: no database."""
    return configured(settings, database_url=None)


async def test_threads_publish(settings: Settings, worker: Settings) -> None:
    assert await run("publish_threads.py", "an-execution", settings=worker) == []
    published = sorted(
        (each.elem_id, each.reason.partition("##")[2]) for each in await occurrences(settings)
    )
    assert published == [
        (f"job-{letter}", reason)
        for letter in "abcd"
        for reason in ("ActionStart", "PullImage", "SuccessfulFinish")
    ]


async def test_an_execution_is_published_followed_and_queried(
    settings: Settings, worker: Settings, database: Database
) -> None:
    printed = await run("publish_asyncio.py", "an-execution", settings=worker)
    assert printed == ["job-b failed: exit code 137"]
    async with consuming(settings), reading(database.reader) as reader:
        await until_stored(settings)
        address = str(reader.api.base_url).rstrip("/")
        followed = await run("follow_execution.py", address, "an-execution", "6")
    events = [line.split("  ")[1:] for line in followed]
    assert [event[0] for event in events] == ["job-a"] * 3 + ["job-b"] * 3
    assert [count for _, _, count in events].count("×3") == 1
    [failed] = await run("dashboard.py", database.ops)
    assert failed.startswith("an-execution  job-b  create  ")
    assert failed.endswith("  retries=3")
    assert "exit code 137" in failed
