import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from execution_events.embedded.process import ChildProcess


class Server(ABC):
    """A server that runs while the context is open, and never longer than this process."""

    def __init__(self) -> None:
        self._process: ChildProcess | None = None

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
    def process(self) -> ChildProcess:
        """The server's process: it can be waited for and, by tests, be killed."""
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process

    @abstractmethod
    async def start(self) -> None:
        """Return once the server answers; raise EmbeddedError, with nothing left running."""

    async def stop(self) -> None:
        """Stop the server in order. Stopping what does not run is harmless."""
        if self._process is not None:
            await self._process.stop()

    async def _launch(
        self, process: ChildProcess, probe: Callable[[], Awaitable[bool]], limit: float
    ) -> None:
        self._process = process
        await process.start()
        try:
            await process.until_ready(probe, limit)
        except BaseException:
            await process.stop()
            raise


@asynccontextmanager
async def running(*servers: Server) -> AsyncIterator[None]:
    """All the servers, started at the same time and stopped at the same time."""
    try:
        started = await asyncio.gather(
            *(server.start() for server in servers), return_exceptions=True
        )
        for outcome in started:
            if outcome is not None:
                raise outcome
        yield
    finally:
        await asyncio.gather(*(server.stop() for server in servers))
