"""A process that crashes in an action and is started again: its events recur."""

import asyncio
import signal
import sys

import pytest

from execution_events.settings import Settings
from tests.support.consumers import consuming, until_stored
from tests.support.occurrences import Fetch
from tests.support.processes import environment

RUNS = 4
SCRIPT = """
import asyncio, os, sys
from execution_events import Publisher

async def main() -> None:
    async with Publisher.from_settings() as publisher:
        element = publisher.element(
            execution_id="crash-loop",
            namespace="n",
            object_name="job",
            elem_type="KubeDAG.init",
            elem_id="job-a-init",
        )
        async with element.action("create") as action:
            await action.retry(ConnectionError("refused"))
            await element.event("镜像拉取##PullImage", "拉取镜像. ## Pulling image.")
            await element.event("进程##Pid", f"进程号 {os.getpid()}. ## Pid.", event_name="job.pid")
            await publisher.flush()
            if sys.argv[1] == "killed":
                os.kill(os.getpid(), 9)
            raise RuntimeError("exit code 137")

asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["raised", "killed"])
async def test_four_runs_of_a_crashing_script_are_one_row_for_each_event(
    end: str, settings: Settings, fetch: Fetch
) -> None:
    async with consuming(settings):
        for _ in range(RUNS):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", SCRIPT, end),
                env=environment(settings),
                stderr=asyncio.subprocess.PIPE,
            )
            _, stderr = await process.communicate()
            if end == "killed":
                assert process.returncode == -signal.SIGKILL, stderr
            else:
                assert b"RuntimeError: exit code 137" in stderr
        await until_stored(settings)
    rows = await fetch("SELECT reason_code, count FROM ops.events_v1 ORDER BY last_timestamp")
    codes = ["ActionStart", "ActionRetry", "PullImage", "Pid"]
    if end == "raised":
        codes.append("ActionFailed")
    assert [tuple(row) for row in rows] == [(code, RUNS) for code in codes]
