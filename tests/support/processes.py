"""Processes of the command `execution-events`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from execution_events.settings import Settings, variables
from tests.support.consumers import DEADLINE, until

COMMAND = (sys.executable, "-m", "execution_events.cli")


def environment(settings: Settings | None = None, **more: str) -> dict[str, str]:
    """Return this process's environment with the variables of `settings` and `more`."""
    return dict(os.environ) | ({} if settings is None else variables(settings)) | more


async def run_cli(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: bytes = b"", code: int = 0
) -> str:
    """Run a command, check its exit code, and return its standard output."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate(stdin)
    assert process.returncode == code, (process.returncode, out.decode(), err.decode())
    return out.decode()


class Service:
    """A command that runs until it is stopped; its output goes to a file."""

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._command = command
        self._log = log
        self._env = env
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            await self.stop()

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def output(self) -> str:
        return self._log.read_text()

    async def start(self) -> None:
        """Start it; also restarts one that has ended."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env
            )

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it, wait for its end, and return its exit code."""
        self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE):
            return await self.process.wait()


class Dev(Service):
    """`execution-events dev` in a data directory."""

    def __init__(
        self, data_dir: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        command = (*COMMAND, "dev", "--data-dir", str(data_dir), "--reader-port", "0", *arguments)
        super().__init__(command, data_dir.with_suffix(".log"), env)
        self.data_dir = data_dir

    async def start(self) -> None:
        # A killed run leaves one behind.
        (self.data_dir / "endpoints.json").unlink(missing_ok=True)
        await super().start()

        async def ready() -> bool:
            assert self.process.returncode is None, self.output
            return (self.data_dir / "endpoints.json").exists()

        await until(ready, "endpoints.json")

    @property
    def endpoints(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_text())
        return content

    async def until_gone(self) -> None:
        """Return once no process of this instance is left."""

        async def gone() -> bool:
            return not processes_of(self.data_dir)

        await until(gone, f"no process of {self.data_dir} is left")


@asynccontextmanager
async def service(
    name: str, settings: Settings, log: Path, **variables: str
) -> AsyncIterator[Service]:
    """`execution-events <name>` with `settings`, its output in `log`."""
    env = environment(settings, EXECUTION_EVENTS_LOG_FORMAT="text", **variables)
    async with Service((*COMMAND, name), log, env) as started:
        yield started


def processes_of(directory: Path) -> list[str]:
    """Return the command lines of the processes that work or hold a file open in `directory`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [process / "cwd", *(process / "fd").iterdir()]
            if any(link.readlink().is_relative_to(directory) for link in links):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # The process has ended or belongs to another user.
    return found
