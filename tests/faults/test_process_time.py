"""A process's clock can be shifted, and its disk slowed or hung, while it runs."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.faults import clock, fsync
from tests.faults.clock import ProcessClock
from tests.faults.fsync import ProcessDisk

SHORT = 0.5  # seconds in which a response would have come
DAY = timedelta(days=1)

needs_clock = pytest.mark.skipif(clock.missing() is not None, reason=str(clock.missing()))
needs_disk = pytest.mark.skipif(fsync.missing() is not None, reason=str(fsync.missing()))

CLOCK = """
import sys, time
for _ in sys.stdin:
    print(time.time(), time.monotonic(), flush=True)
"""
DISK = """
import os, sys
file = open(sys.argv[1], "wb")
for name in sys.stdin:
    getattr(os, name.strip())(file.fileno())
    print(flush=True)
"""


class Program:
    """A program that responds to each line with a line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def call(self, line: str = "", limit: float = 30) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        return await self.response(limit)

    async def response(self, limit: float = 30) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), limit)).decode()


@asynccontextmanager
async def running(command: list[str], program: str, *arguments: str) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        *(*command, sys.executable, "-c", program, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@needs_clock
async def test_a_clock_moves_while_its_process_runs(tmp_path: Path) -> None:
    false_clock = ProcessClock(tmp_path / "clock", -31 * DAY)
    async with running(false_clock.command, CLOCK) as program:
        wall, monotonic = map(float, (await program.call()).split())
        assert abs(wall - time.time() + 31 * DAY.total_seconds()) < 60
        assert abs(monotonic - time.monotonic()) < 60

        false_clock.move(timedelta(hours=2))

        wall, monotonic = map(float, (await program.call()).split())
        assert abs(wall - time.time() - 2 * 3600) < 60
        assert abs(monotonic - time.monotonic()) < 60


@needs_disk
@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
async def test_a_disk_can_be_slow_hung_and_repaired(tmp_path: Path, call: str) -> None:
    disk = ProcessDisk(tmp_path)
    await disk.build()
    async with running(disk.command, DISK, os.fspath(tmp_path / "data")) as program:
        await program.call(call)

        disk.slow(SHORT)
        began = time.monotonic()
        await program.call(call)
        assert time.monotonic() - began >= SHORT

        disk.hang()
        with pytest.raises(TimeoutError):
            await program.call(call, SHORT)
        disk.repair()
        await program.response()
        await program.call(call)


@needs_disk
async def test_a_process_on_a_hung_disk_can_be_killed(tmp_path: Path) -> None:
    disk = ProcessDisk(tmp_path)
    await disk.build()
    disk.hang()
    async with running(disk.command, DISK, os.fspath(tmp_path / "data")) as program:
        with pytest.raises(TimeoutError):
            await program.call("fsync", SHORT)
        program.process.kill()
        await asyncio.wait_for(program.process.wait(), 10)
