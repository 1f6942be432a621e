"""A child process that answers each line of its input with a line of JSON."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.benchmarks.trees import THIS

_TIMEOUT = 135
"""Seconds until an answer."""


class Client:
    """The process, while the context is open."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, line: bytes) -> dict[str, Any]:
        """Send a line and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + b"\n")
        async with asyncio.timeout(_TIMEOUT):
            answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the {self._name} process ended")
        content: dict[str, Any] = json.loads(answer)
        return content


@asynccontextmanager
async def client(name: str) -> AsyncIterator[Client]:
    """Run a module of the benchmarks that answers lines; it never outlives the context."""
    process = await asyncio.create_subprocess_exec(
        *(THIS.python, "-m", f"tests.benchmarks.{name}"),
        cwd=THIS.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Client(name, process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
