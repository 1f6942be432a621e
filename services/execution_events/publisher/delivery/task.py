"""Tasks that run as long as a publisher is open."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from execution_events.logs import Logger
from execution_events.publisher.lifecycle import describe

_log = Logger(__name__)

_RESTART_DELAY = 0.5
"""Seconds between the failure of a task and its restart."""


class RestartingTask:
    """A task that runs `run` until it returns or is stopped, and is restarted when it fails.

    A cancellation from outside counts as a failure: programs cancel all tasks when they stop, and
    still publish while they do. Each restart is logged and delayed by half a second.
    """

    def __init__(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._run = run
        self._stopped = False
        self._start()

    async def stop(self) -> None:
        """Cancel the task and return when it has ended."""
        self._stopped = True
        while not self._task.done():
            # Repeated, because a library may swallow a cancellation.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_RESTART_DELAY)

    def _start(self) -> None:
        if not self._stopped:
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            if self._stopped:
                return
            error = "cancelled"
        elif (failure := task.exception()) is not None:
            error = describe(failure)
        else:
            return
        _log.error("task_restarted", task=self._run.__qualname__, error=error)
        task.get_loop().call_later(_RESTART_DELAY, self._start)
