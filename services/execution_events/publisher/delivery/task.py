"""Tasks that run as long as a publisher is open."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from execution_events.logs import Logger, Repetitions
from execution_events.publisher.lifecycle import describe

_log = Logger(__name__)

_RESTART_DELAY = 0.5
"""Seconds between the failure of a task and its restart."""


class RestartingTask:
    """A task that runs `run` until it returns or is stopped, and is restarted when it fails.

    A cancellation from outside counts as a failure: programs cancel all tasks when they stop, and
    still publish while they do. A restart is delayed by half a second. It is logged, as an error
    after a failure, and once a minute if it repeats.
    """

    def __init__(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._run = run
        self._stopped = False
        self._repetitions = Repetitions()
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
            _log.info("task_restarted", task=self._run.__qualname__, error="cancelled")
        elif (failure := task.exception()) is not None:
            error = describe(failure)
            if (repeated := self._repetitions.count(error)) is not None:
                _log.error("task_restarted", task=self._run.__qualname__, error=error, **repeated)
        else:
            return
        task.get_loop().call_later(_RESTART_DELAY, self._start)
