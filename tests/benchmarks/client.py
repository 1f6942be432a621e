"""A process that is asked in lines, and answers each with a line of JSON."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.benchmarks.worker import ROOT

_PATIENCE = 135
"""Seconds for an answer."""


class Client:
    """The process, while the context is open."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, line: bytes) -> dict[str, Any]:
        """Give it a line and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + b"\n")
        async with asyncio.timeout(_PATIENCE):
            answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the {self._name} process has ended")
        content: dict[str, Any] = json.loads(answer)
        return content


@asynccontextmanager
async def client(name: str) -> AsyncIterator[Client]:
    """A module of the benchmarks that answers lines; it never outlives the context."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"tests.benchmarks.{name}"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Client(name, process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
