"""The examples run as they are."""

import asyncio
import re
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from pathlib import Path
from textwrap import indent

import asyncpg
import pytest

from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, consuming, until_stored
from tests.support.databases import Database
from tests.support.processes import environment
from tests.support.published import occurrences
from tests.support.readers import reading

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGE = Path(__file__).parents[2] / "services" / "WORKERS.md"


async def started(name: str, *arguments: str, settings: Settings | None) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(EXAMPLES / name), *arguments),
        env=environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def run(
    name: str, *arguments: str, settings: Settings | None = None, code: int = 0
) -> list[str]:
    """Run an example to its end, and return the lines that it printed."""
    process = await started(name, *arguments, settings=settings)
    async with asyncio.timeout(DEADLINE):
        output, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (code, "")
    return output.decode().splitlines()


async def published(settings: Settings) -> list[tuple[str, str]]:
    """Return elements and codes of all events; those of one execution are in order."""
    return [(each.elem_id, each.reason.partition("##")[2]) for each in await occurrences(settings)]


@pytest.fixture
def worker(settings: Settings) -> Settings:
    """A worker's settings: no database."""
    return configured(settings, database_url=None)


async def test_threads_publish(settings: Settings, worker: Settings) -> None:
    assert await run("publish_threads.py", "an-execution", settings=worker) == []
    assert sorted(await published(settings)) == [
        (f"job-{letter}", reason)
        for letter in "abcd"
        for reason in ("ActionStart", "PullImage", "SuccessfulFinish")
    ]


async def test_forked_processes_publish(settings: Settings, worker: Settings) -> None:
    assert await run("publish_prefork.py", "an-execution", settings=worker) == []
    assert sorted(await published(settings)) == [
        (elem_id, reason)
        for elem_id in ("job-a", "job-b")
        for reason in ("ActionStart", "PullImage", "SuccessfulFinish")
    ]


@pytest.mark.parametrize(
    ("command", "code", "end"), [("true", 0, "SuccessfulFinish"), ("false", 1, "ActionFailed")]
)
async def test_a_batch_job_has_the_exit_code_of_its_command(
    settings: Settings, worker: Settings, command: str, code: int, end: str
) -> None:
    assert await run("batch_job.py", "an-execution", command, settings=worker, code=code) == []
    assert await published(settings) == [("job-a", "ActionStart"), ("job-a", end)]


async def test_retries_are_reported(settings: Settings, worker: Settings) -> None:
    printed = await run("retries.py", "an-execution", settings=worker)
    assert printed == ["job-b failed: no node in time"]
    found = await occurrences(settings)
    assert [code for elem_id, code in await published(settings) if elem_id == "job-a"] == [
        "ActionStart",
        *["ActionRetry"] * 2,
        "SuccessfulFinish",
    ]
    retries = [each.name for each in found if "ActionRetry" in each.reason]
    assert (len(retries), len(set(retries))) == (5, 2)
    assert found[-1].reason.endswith("ActionFailed")


@pytest.mark.parametrize("name", ["stop_threads.py", "stop_asyncio.py"])
async def test_sigterm_cancels_the_action(settings: Settings, worker: Settings, name: str) -> None:
    process = await started(name, "an-execution", settings=worker)
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        assert await process.stdout.readline() == b"running\n"
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (143, "")
    assert await published(settings) == [("job-a", "ActionStart"), ("job-a", "ActionCancelled")]


async def test_a_timeout_inside_ends_an_action_and_one_around_cancels_it(
    settings: Settings, worker: Settings
) -> None:
    assert await run("timeouts.py", "an-execution", settings=worker) == []
    ends = [
        (each.action_name, each.reason.partition("##")[2]) for each in await occurrences(settings)
    ]
    assert ends == [
        ("create", "ActionStart"),
        ("create", "ActionTimeout"),
        ("delete", "ActionStart"),
        ("delete", "ActionCancelled"),
    ]


async def test_a_reason_of_a_worker_decides_the_state_by_its_code(
    settings: Settings, worker: Settings, database: Database
) -> None:
    assert await run("reasons.py", "an-execution", settings=worker) == []
    async with consuming(settings):
        await until_stored(settings)
    connection = await asyncpg.connect(database.ops)
    try:
        assert await connection.fetchval("SELECT state FROM ops.elements_v1") == "failed"
    finally:
        await connection.close()


def test_the_page_for_workers_quotes_the_examples() -> None:
    """Each block is a part of the file that the text above it links last."""
    name, quoted = "", set()
    pattern = r"\]\(\.\./tests/examples/(\w+\.py)\):$|^```python\n(.*?)\n```$"
    for link, block in re.findall(pattern, PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if link:
            name = link
            continue
        source = (EXAMPLES / name).read_text()
        excerpts = [indent(block, " " * width) for width in (0, 4, 8, 12)]
        assert any(excerpt in source for excerpt in excerpts), f"not in {name}:\n{block}"
        quoted.add(name)
    own = {path.name for path in EXAMPLES.glob("*.py")} - {"dashboard.py", "follow_execution.py"}
    assert quoted == own


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
