"""Child processes: output, exit codes, and their end with the parent."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from execution_events.embedded import ChildProcess, EmbeddedError

DEADLINE = 10.0

STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.1; done"
POLITE = "trap 'echo stopping; exit 3' TERM; echo up; while :; do sleep 0.1; done"


class Lines:
    """The lines that a process has printed."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._more = asyncio.Event()

    def __call__(self, line: str) -> None:
        self.all.append(line)
        self._more.set()

    async def until(self, line: str) -> None:
        async with asyncio.timeout(DEADLINE):
            while line not in self.all:
                self._more.clear()
                await self._more.wait()


def shell(script: str, **options: object) -> ChildProcess:
    return ChildProcess(["/bin/sh", "-c", script], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 128 + 9)]
)
async def test_the_exit_code_is_the_commands(script: str, code: int) -> None:
    async with shell(script) as process:
        assert await process.wait() == code
    assert await process.stop() == code


async def test_stopping_lets_the_command_finish() -> None:
    lines = Lines()
    async with shell(POLITE, on_line=lines) as process:
        await lines.until("up")
        assert await process.stop() == 3
    assert lines.all == ["up", "stopping"]


async def test_the_stop_signal_can_be_chosen() -> None:
    lines = Lines()
    script = POLITE.replace("TERM", "INT")
    async with shell(script, on_line=lines, stop_signal=signal.SIGINT) as process:
        await lines.until("up")
        assert await process.stop() == 3


async def test_a_stubborn_command_is_killed_after_the_grace() -> None:
    lines = Lines()
    async with shell(STUBBORN, on_line=lines, grace=0.2) as process:
        await lines.until("up")
        assert await process.stop() == 128 + 9


async def test_both_streams_arrive_line_by_line() -> None:
    lines = Lines()
    script = r"echo one; echo two >&2; printf 'caf\351\r\nlast'"
    async with shell(script, on_line=lines) as process:
        await process.wait()
    assert lines.all == ["one", "two", "caf\N{REPLACEMENT CHARACTER}", "last"]
    assert process.last_lines.endswith("\nlast")


async def test_a_line_has_a_bounded_length_and_loses_nothing() -> None:
    lines = Lines()
    code = "print('x' * 100_000, end='')"
    async with ChildProcess([sys.executable, "-c", code], on_line=lines) as process:
        await process.wait()
    assert max(map(len, lines.all)) <= 16 * 1024
    assert "".join(lines.all) == "x" * 100_000


async def test_only_the_last_lines_are_kept() -> None:
    async with shell("seq 100") as process:
        await process.wait()
    assert process.last_lines.splitlines() == [str(number) for number in range(61, 101)]


async def test_the_command_gets_its_environment_and_directory(tmp_path: Path) -> None:
    lines = Lines()
    async with shell("echo $WORD; pwd", env={"WORD": "here"}, cwd=tmp_path, on_line=lines) as child:
        await child.wait()
    assert lines.all == ["here", str(tmp_path.resolve())]


async def test_a_command_that_cannot_be_executed_is_named() -> None:
    with pytest.raises(EmbeddedError, match="no-such-command"):
        await ChildProcess(["/no-such-command"]).start()


async def test_the_pid_is_that_of_the_command_and_signals_reach_it() -> None:
    lines = Lines()
    async with shell("echo $$; exec sleep 60", on_line=lines) as process:
        await lines.until(str(process.pid))
        process.kill(signal.SIGTERM)
        assert await process.wait() == 128 + signal.SIGTERM
        process.kill()


async def test_the_error_for_a_process_that_ends_early_has_its_output() -> None:
    async def never() -> bool:
        return False

    async with shell("echo no such luck; exit 4") as process:
        with pytest.raises(EmbeddedError, match=r"exited with code 4.*\nno such luck"):
            await process.until_ready(never, DEADLINE)


async def test_waiting_has_a_timeout() -> None:
    async def never() -> bool:
        return False

    async with shell("exec sleep 60") as process:
        with pytest.raises(EmbeddedError, match=r"not ready within 0\.1 s"):
            await process.until_ready(never, 0.1)


async def test_the_children_of_the_command_end_with_it() -> None:
    read, write = os.pipe()
    async with shell("sleep 60 & exit 0", inherit=[write]) as process:
        os.close(write)
        await process.wait()
    await _until_closed(read)


PARENT = """
import asyncio, sys
from execution_events.embedded import ChildProcess

async def main():
    child = ChildProcess(["/bin/sh", "-c", sys.argv[2]], inherit=[int(sys.argv[1])], grace=0.5)
    await child.start()
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("script", [POLITE, STUBBORN], ids=["polite", "stubborn"])
async def test_the_command_ends_with_a_killed_parent(script: str) -> None:
    read, write = os.pipe()
    with _parent(write, script) as parent:
        os.close(write)
        parent.kill()
    await _until_closed(read)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
async def test_the_command_ends_with_a_killed_guard() -> None:
    read, write = os.pipe()
    async with shell("exec sleep 60", inherit=[write]) as process:
        os.close(write)
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        guard = int(stat.rpartition(")")[2].split()[1])
        os.kill(guard, signal.SIGKILL)
        await _until_closed(read)
        assert await process.wait() == 128 + 9


async def test_an_interrupt_at_the_terminal_does_not_reach_the_command() -> None:
    lines = Lines()
    async with shell(POLITE, on_line=lines) as process:
        await lines.until("up")
        assert os.getsid(process.pid) != os.getsid(0)
        assert os.getpgid(process.pid) != os.getpgid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can choose an account")
async def test_the_command_runs_under_an_account() -> None:
    lines = Lines()
    async with shell("id -un; id -G | wc -w", user="nobody", on_line=lines, cwd=Path("/")) as child:
        assert await child.wait() == 0
    assert [line.strip() for line in lines.all] == ["nobody", "1"]


def _parent(write: int, script: str) -> "subprocess.Popen[bytes]":
    """Start a process that starts the script; both hold the descriptor."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(write), script],
        stdout=subprocess.PIPE,
        pass_fds=[write],
    )
    assert parent.stdout is not None
    assert int(parent.stdout.readline())
    return parent


async def _until_closed(read: int) -> None:
    """Wait until no process holds the other end of the pipe."""
    async with asyncio.timeout(DEADLINE):
        assert await asyncio.to_thread(os.read, read, 1) == b""
    os.close(read)
