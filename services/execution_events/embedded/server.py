"""The base of embedded servers, and several of them started together."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from execution_events.embedded.process import ChildProcess


class Server(ABC):
    """A server that runs while its context is open, and never longer than this process."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
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
        """The server's process; tests may kill it."""
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process

    async def start(self) -> None:
        """Return once the server answers; on failure stop it and raise EmbeddedError."""
        try:
            await self.launch()
            await self.until_ready()
        except BaseException:
            await self.stop()
            raise

    @abstractmethod
    async def launch(self) -> None:
        """Start the process, and return before the server answers."""

    async def until_ready(self) -> None:
        """Wait until the server answers; raise EmbeddedError after its timeout."""
        await self.process.until_ready(self.answers, self._timeout)

    async def stop(self) -> None:
        """Stop the server in order; do nothing if it does not run."""
        if self._process is not None:
            await self._process.stop()

    @abstractmethod
    async def answers(self) -> bool:
        """Return whether the server answers a request."""


@asynccontextmanager
async def running(*servers: Server) -> AsyncIterator[None]:
    """Start all servers concurrently; stop all concurrently when the context exits."""
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
