"""SIGINT and SIGTERM: stop in order on the first, at once on the second."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from execution_events.logs import Logger

_log = Logger(__name__)


@contextmanager
def sigterm_as_sigint() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt as Ctrl-C does, in `asyncio.run` after the clean-up."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        # asyncio.run has its own handler.
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(signal.SIGINT, frame)
        else:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_until_stopped(
    service: Callable[[asyncio.Event], Awaitable[int | None]],
    limit: float | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """Run `service` with an event that SIGINT or SIGTERM sets, and return its exit code.

    A second signal ends the process at once. With a `limit` the process ends at most that many
    seconds after the first. Without a `loop_factory` the service runs on asyncio's own loop.
    """

    async def run() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal(number: int) -> None:
            if stop.is_set():
                os._exit(128 + number)
            stop.set()
            if limit is not None:
                loop.call_later(limit, _abort, limit)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        return await service(stop) or 0

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(run())


def _abort(limit: float) -> None:
    _log.error("stop_timed_out", seconds=limit)
    os._exit(1)
