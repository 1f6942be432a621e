"""`execution-events tail` in a pseudo-terminal."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pexpect

from tests.support.consumers import DEADLINE
from tests.support.processes import COMMAND
from tests.support.readers import Reader

EXECUTION = "execution-1"


class Terminal:
    """A terminal that shows the output of one command."""

    def __init__(self, process: "pexpect.spawn[str]") -> None:
        self.process = process
        self.screen = ""
        """Everything shown so far."""
        self._held_back = ""

    async def shows(self, text: str, times: int = 1) -> None:
        """Return once the whole screen has the text that many times."""

        def read() -> None:
            while self.screen.count(text) < times:
                try:
                    self._read()
                except (pexpect.EOF, pexpect.TIMEOUT) as error:
                    seen, end = self.screen.count(text), self.screen[-2000:]
                    raise AssertionError(f"{text!r} {seen} of {times} times: …{end}") from error

        await asyncio.to_thread(read)

    async def ends(self) -> int:
        """Read until the command has ended, and return its exit code."""

        def read() -> int:
            try:
                while True:
                    self._read()
            except pexpect.EOF:
                self.process.wait()
                assert self.process.signalstatus is None, self.screen
                return int(self.process.exitstatus)

        return await asyncio.to_thread(read)

    def _read(self) -> None:
        # A terminal's line break may arrive in two pieces.
        piece = self._held_back + self.process.read_nonblocking(65536, DEADLINE)
        self._held_back = "\r" if piece.endswith("\r") else ""
        self.screen += piece.removesuffix(self._held_back).replace("\r\n", "\n")

    async def interrupted(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        self.process.sendintr()
        return await self.ends()


@asynccontextmanager
async def tailing(
    reader: Reader | str,
    *arguments: str,
    columns: int = 120,
    execution_id: str = EXECUTION,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Terminal]:
    """Run `tail` in a terminal of UTF-8, without colors unless `env` or the arguments differ."""
    url = reader if isinstance(reader, str) else str(reader.api.base_url)
    environment = {
        "PATH": os.environ["PATH"],
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "NO_COLOR": "1",
        **(env or {}),
    }
    process = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], "tail", execution_id, "--reader", url, *arguments],
        env=environment,
        dimensions=(24, columns),
        encoding="utf-8",
        codec_errors="backslashreplace",
        echo=False,
    )
    try:
        yield Terminal(process)
    finally:
        if process.isalive():
            process.kill(signal.SIGKILL)
        process.close(force=True)
