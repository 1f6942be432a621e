"""A service as a child process that is restarted when it ends."""

import asyncio
import os
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from execution_events.embedded import ChildProcess, own_environment
from execution_events.errors import ExecutionEventsError
from execution_events.logs import Logger

_log = Logger(__name__)

_READY_TIMEOUT = 60
"""Seconds for a service to become ready."""
_RESTART_DELAY = 1
"""Seconds between the end of a service and its restart."""
_WRONG_SETTINGS = 2
"""Exit code after which a restart is useless."""

Say = Callable[[str, str], None]
"""Prints a line of the named process."""


@asynccontextmanager
async def supervised(
    name: str, settings: Mapping[str, str], ready_url: str, say: Say
) -> AsyncIterator[asyncio.Task[None]]:
    """Run `execution-events <name>`; enter once `ready_url` answers 200.

    The service is restarted whenever it ends, and stopped when the context exits. The task fails
    once a restart is useless: the service did not become ready, or refused its settings.
    """

    def process() -> ChildProcess:
        return ChildProcess(
            [sys.executable, "-m", "execution_events.cli", name],
            env={**own_environment(), **settings},
            grace=30,
            on_line=lambda line: say(name, line),
        )

    async def ready() -> bool:
        return await asyncio.to_thread(_answers, ready_url)

    started = asyncio.Event()

    async def supervise() -> None:
        while True:
            async with process() as child:
                if not started.is_set():
                    await child.until_ready(ready, _READY_TIMEOUT)
                    started.set()
                code = await child.wait()
            if code == _WRONG_SETTINGS:
                raise ExecutionEventsError(f"{name} refused its settings: see its last lines")
            say(name, f"exited with code {code}; restarting")
            await asyncio.sleep(_RESTART_DELAY)

    task = asyncio.create_task(supervise())
    entering = asyncio.create_task(started.wait())
    try:
        await asyncio.wait({task, entering}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield task
    finally:
        task.cancel()
        entering.cancel()
        await asyncio.gather(task, entering, return_exceptions=True)


def fetch(url: str) -> bytes:
    """Return the body of a response with status 200, not through a proxy; raise OSError else."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as response:
        body: bytes = response.read()
        return body


def _answers(url: str) -> bool:
    try:
        fetch(url)
    except OSError:
        return False
    return True


def printer(colour: bool) -> Say:
    """Return a function that prints lines, each after the name of its process.

    Everything continues without them if standard output fails, which is said once.
    """
    lost = False

    def say(name: str, line: str) -> None:
        nonlocal lost
        prefix = f"{name:<10} |"
        if colour:
            prefix = f"\x1b[{31 + sum(name.encode()) % 6}m{prefix}\x1b[0m"
        try:
            if not lost:
                print(f"{prefix} {line}", flush=True)
        except OSError as error:
            lost = True
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, sys.stdout.fileno())
            os.close(sink)
            _log.error("output_lost", error=error.strerror, continues=True)

    return say
