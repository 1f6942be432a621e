"""A child process that cannot outlive its parent."""

import asyncio
import contextlib
import os
import pwd
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from execution_events.embedded.errors import EmbeddedError

GUARD = Path(__file__).with_name("guard.py")
LINES_KEPT = 40
LINE_BYTES = 16 * 1024
MARGIN = 5.0  # seconds that a guard may take beyond the grace of its command


def ignore(line: str) -> None:
    """Ignore a line: the default of `on_line`."""


class ChildProcess:
    """A command that cannot outlive this process.

    The command runs in its own session, so that Ctrl-C at the terminal reaches only this process,
    which then stops the command. When this process ends, even by SIGKILL, the command receives
    `stop_signal` and, `grace` seconds later, SIGKILL.

    `env` replaces the environment if given. `user` is the account to run under, which only root
    can choose. The descriptors in `inherit` stay open in the command.

    `on_line` receives each line of standard output and standard error, in order, without the line
    break; a line longer than 16 KiB arrives in pieces, and bytes that are not UTF-8 are replaced.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace: float = 10.0,
        user: str | None = None,
        inherit: Sequence[int] = (),
        on_line: Callable[[str], None] = ignore,
    ) -> None:
        self._argv = [str(argument) for argument in argv]
        self._env = env
        self._cwd = cwd
        self._stop_signal = stop_signal
        self._grace = grace
        self._user = user
        self._inherit = tuple(inherit)
        self._on_line = on_line
        self._last_lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._guard: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None
        self._pid: int | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        """The process id of the command, not of its guard."""
        if self._pid is None:
            raise RuntimeError("the process has not been started")
        return self._pid

    @property
    def last_lines(self) -> str:
        """The last 40 lines of the output, for an error message."""
        return "\n".join(self._last_lines) or "(no output)"

    async def start(self) -> None:
        """Return once the command runs; raise EmbeddedError if it cannot be executed."""
        read, write = os.pipe()
        try:
            self._guard = await asyncio.create_subprocess_exec(
                *self._guarded(write),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                pass_fds=(write, *self._inherit),
                start_new_session=True,
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        try:
            if self._guard.stdout is not None:
                self._output = asyncio.create_task(self._pump(self._guard.stdout))
            self._pid = _started(await _read_all(read))
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """Wait until the command ends; return its exit code, or 128 + n after signal n."""
        if self._guard is None:
            raise RuntimeError("the process has not been started")
        code = await self._guard.wait()
        if self._output is not None:
            # The command's own output is in the pipe by now. A process that it left behind may
            # keep the pipe open.
            await asyncio.wait([self._output], timeout=1.0)
        return code if code >= 0 else 128 - code

    async def stop(self) -> int | None:
        """Stop the command and return its exit code; None if it was never started.

        Return within `grace` and a few seconds. Do nothing if the command has ended.
        """
        if self._guard is None:
            return None
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        try:
            async with asyncio.timeout(self._grace + MARGIN):
                return await self.wait()
        except TimeoutError:
            self.kill()
            with contextlib.suppress(ProcessLookupError):
                self._guard.kill()
            return await self.wait()
        finally:
            if self._output is not None:
                self._output.cancel()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the command; do nothing if it has ended."""
        if self._guard is None or self._guard.returncode is not None or self._pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)

    async def until_ready(self, probe: Callable[[], Awaitable[bool]], timeout: float) -> None:
        """Wait until `probe`, called every 50 ms, returns true.

        Raise EmbeddedError with the last lines of the output if the command ends first or after
        `timeout` seconds.
        """
        ended = asyncio.create_task(self.wait())
        ready = asyncio.create_task(_until(probe))
        try:
            await asyncio.wait([ended, ready], timeout=timeout, return_when="FIRST_COMPLETED")
            if ready.done():
                return ready.result()
            problem = (
                f"exited with code {ended.result()}"
                if ended.done()
                else f"was not ready within {timeout:g} s"
            )
            raise EmbeddedError(
                f"{Path(self._argv[0]).name} {problem}. Its last lines:\n{self.last_lines}"
            )
        finally:
            ended.cancel()
            ready.cancel()
            await asyncio.gather(ended, ready, return_exceptions=True)

    def _guarded(self, report: int) -> list[str]:
        account = pwd.getpwnam(self._user) if self._user is not None else None
        user, group = (account.pw_uid, account.pw_gid) if account else (-1, -1)
        options = (report, int(self._stop_signal), self._grace, user, group)
        return [sys.executable, "-I", "-S", str(GUARD), *map(str, options), *self._argv]

    async def _pump(self, output: asyncio.StreamReader) -> None:
        rest = b""
        while data := await output.read(LINE_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            while len(rest) > LINE_BYTES:
                lines.append(rest[:LINE_BYTES])
                rest = rest[LINE_BYTES:]
            for line in lines:
                self._emit(line)
        if rest:
            self._emit(rest)

    def _emit(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        self._last_lines.append(text)
        self._on_line(text)


async def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    inherit: Sequence[int] = (),
) -> None:
    """Run a command to its end; raise EmbeddedError with its last lines if it fails."""
    async with ChildProcess(argv, env=env, cwd=cwd, user=user, inherit=inherit) as process:
        if code := await process.wait():
            raise EmbeddedError(
                f"{Path(argv[0]).name} failed with exit code {code}:\n{process.last_lines}"
            )


async def _until(probe: Callable[[], Awaitable[bool]]) -> None:
    while not await probe():
        await asyncio.sleep(0.05)


async def _read_all(descriptor: int) -> bytes:
    """Read a pipe to its end, and close it."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        return await reader.read()
    finally:
        transport.close()


def _started(report: bytes) -> int:
    lines = dict(line.split(" ", 1) for line in report.decode(errors="replace").splitlines())
    if "error" in lines:
        raise EmbeddedError(f"cannot start {lines['error']}")
    if "pid" not in lines:
        raise EmbeddedError("the guard of a process exited before it started the process")
    return int(lines["pid"])
