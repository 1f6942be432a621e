"""Probes of a service's peers, independent of its work."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prometheus_client import Gauge

from execution_events.errors import ExecutionEventsError, RetryableError
from execution_events.logs import Logger

_log = Logger(__name__)

_INTERVAL = 5
"""Seconds between probes."""
_TIMEOUT = 5
_RETRY_INTERVAL = 0.5
"""Seconds between attempts of one probe."""
_CHECK_NOW_TIMEOUT = 1.8
"""Below the 2 s in which `/readyz` must respond."""


class Probe:
    """A health check of a peer every 5 s, independent of the service's work.

    `problem` is the error of the last check, None after a success. `check` raises `RetryableError`,
    after which it is repeated for up to 5 s, or another error of this package.
    """

    def __init__(self, peer: str, check: Callable[[], Awaitable[None]], answered: Gauge) -> None:
        self.problem: str | None = f"{peer}: not checked yet"
        self._peer = peer
        self._check = check
        self._answered = answered
        self._is_unavailable = False
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the checks while the context is open."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def check_now(self) -> str | None:
        """Check the peer once more; return the problem within 2 s, None after a success."""
        try:
            async with asyncio.timeout(_CHECK_NOW_TIMEOUT):
                await self._check_peer()
        except TimeoutError:
            return f"{self._peer}: no answer within {_CHECK_NOW_TIMEOUT} s"
        except ExecutionEventsError as error:
            return str(error)
        return None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            at = loop.time() + _INTERVAL
            self._set_problem(await self._probe())
            await asyncio.sleep(max(0, at - loop.time()))

    async def _probe(self) -> str | None:
        problem = f"{self._peer}: no answer within {_TIMEOUT} s"
        try:
            async with asyncio.timeout(_TIMEOUT):
                while True:
                    try:
                        await self._check_peer()
                    except RetryableError as error:
                        problem = str(error)
                        await asyncio.sleep(_RETRY_INTERVAL)
                    except ExecutionEventsError as error:
                        return str(error)
                    except Exception as error:
                        # Whatever a library raises: the probe must not end.
                        _log.exception("probe_failed", peer=self._peer)
                        return f"{self._peer}: {type(error).__name__}: {error}"
                    else:
                        return None
        except TimeoutError:
            return problem

    async def _check_peer(self) -> None:
        async with self._lock:
            await self._check()
        self._answered.set_to_current_time()

    def _set_problem(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            _log.warning("peer_unavailable", peer=self._peer, error=problem)
            self._is_unavailable = True
        elif problem is None and self._is_unavailable:
            _log.info("peer_available", peer=self._peer)
            self._is_unavailable = False
        self.problem = problem
