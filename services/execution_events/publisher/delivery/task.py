"""Tasks of the publisher that must not end while it is open."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from execution_events.logs import Logger

_logger = Logger(__name__)

_PAUSE = 0.5
"""Seconds until a task that has failed begins again."""


class Background:
    """Runs `run` in a task until it returns or is stopped.

    One that fails, or that is cancelled by somebody else (programs cancel all tasks when they
    stop, and still publish while they do), is logged and begun again after half a second.
    """

    def __init__(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._run = run
        self._stopped = False
        self._begin()

    async def stop(self) -> None:
        """Cancel it and return when it has ended."""
        self._stopped = True
        while not self._task.done():
            # Again, because a library may lose a cancellation.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_PAUSE)

    def _begin(self) -> None:
        if not self._stopped:
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        error = "cancelled" if task.cancelled() else task.exception()
        if error is None or (self._stopped and task.cancelled()):
            return
        _logger.error("publisher's task ended", task=self._run.__qualname__, error=repr(error))
        task.get_loop().call_later(_PAUSE, self._begin)
