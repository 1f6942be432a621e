"""Probes of a service's peers, apart from its work."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prometheus_client import Gauge

from execution_events.errors import ExecutionEventsError, RetryableError
from execution_events.logs import Logger

_log = Logger(__name__)

_PROBE_INTERVAL = 5
_PROBE_TIMEOUT = 5
_NOW_TIMEOUT = 1.8
_PROBE_PAUSE = 0.5
"""Seconds between attempts of one probe."""


class Probe:
    """A request to a peer every 5 s, apart from the service's work.

    `problem` is the cause for which the peer has not answered the last one within 5 s, None where
    it has. `check` raises `RetryableError`, which is tried again within the 5 s, or another error
    of this package.
    """

    def __init__(self, peer: str, check: Callable[[], Awaitable[None]], answered: Gauge) -> None:
        self.problem: str | None = f"{peer}: not asked yet"
        self._peer = peer
        self._check = check
        self._answered = answered
        self._is_logged = False
        self._asking = asyncio.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask while the context is open."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def now(self) -> str | None:
        """Return why the peer does not answer one more request, at most after 2 s."""
        try:
            async with asyncio.timeout(_NOW_TIMEOUT):
                await self._ask()
        except TimeoutError:
            return f"{self._peer}: no answer within {_NOW_TIMEOUT} s"
        except ExecutionEventsError as error:
            return str(error)
        return None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            at = loop.time() + _PROBE_INTERVAL
            self._note(await self._try())
            await asyncio.sleep(max(0, at - loop.time()))

    async def _try(self) -> str | None:
        problem = f"{self._peer}: no answer within {_PROBE_TIMEOUT} s"
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT):
                while True:
                    try:
                        await self._ask()
                    except RetryableError as error:
                        problem = str(error)
                        await asyncio.sleep(_PROBE_PAUSE)
                    except ExecutionEventsError as error:
                        return str(error)
                    except Exception as error:
                        # Whatever a library raises: a probe that has ended would tell nothing.
                        _log.exception("probe_failed", peer=self._peer)
                        return f"{self._peer}: {type(error).__name__}: {error}"
                    else:
                        return None
        except TimeoutError:
            return problem

    async def _ask(self) -> None:
        async with self._asking:
            await self._check()
        self._answered.set_to_current_time()

    def _note(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            _log.warning("peer_unavailable", error=problem)
            self._is_logged = True
        elif problem is None and self._is_logged:
            _log.info("peer_answers", peer=self._peer)
            self._is_logged = False
        self.problem = problem
