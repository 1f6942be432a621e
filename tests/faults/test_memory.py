"""The memory limit kills a process that exceeds it, and no other."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults import memory
from tests.faults.memory import MemoryLimit

MB = 10**6

pytestmark = pytest.mark.skipif(memory.missing() is not None, reason=str(memory.missing()))


class Process:
    name = "victim"

    def __init__(self, pid: int | None) -> None:
        self.pid = pid


@asynccontextmanager
async def allocating(size: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process that allocates `size` bytes, prints a line, and waits."""
    program = f"held = b'x' * {size}; print(flush=True); input()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_process_beyond_the_limit_is_killed() -> None:
    async with (
        allocating(200 * MB) as process,
        MemoryLimit([Process(process.pid)], 100 * MB) as limit,
    ):
        assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL
    assert limit.kills == ["victim"]
    assert limit.peak > 100 * MB


async def test_a_process_within_the_limit_survives() -> None:
    async with allocating(1 * MB) as process:
        assert process.stdout is not None
        async with MemoryLimit([Process(process.pid), Process(None)], 100 * MB) as limit:
            await process.stdout.readline()
        assert process.returncode is None
    assert not limit.kills
    assert 0 < limit.peak < 100 * MB
