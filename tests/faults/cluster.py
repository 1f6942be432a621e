"""The servers of a run: PostgreSQL with fsync, and Kafka with one or three nodes."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from execution_events.embedded import DataDirectory, EmbeddedPostgres
from tests.faults.brokers import Brokers, brokers
from tests.faults.database import template
from tests.faults.disk import Disk, small_disk
from tests.faults.proxy import Proxy
from tests.faults.source import Source
from tests.support.servers import data_directory


class Cluster:
    """The servers that the episodes of a run share. One Kafka cluster runs at a time."""

    def __init__(
        self,
        directory: DataDirectory,
        postgres: EmbeddedPostgres,
        postgres_proxy: Proxy,
        template_name: str,
    ) -> None:
        self.path = directory.path
        self.postgres = postgres
        self.postgres_proxy = postgres_proxy
        self.template = template_name
        self._directory = directory
        self._stack = AsyncExitStack()
        self._brokers: Brokers | None = None
        self._changing = asyncio.Lock()

    async def brokers(self, count: int) -> Brokers:
        """Return the running Kafka cluster of `count` nodes; replace one of another size."""
        async with self._changing:
            if self._brokers is None or len(self._brokers.nodes) != count:
                await self.close()
                running = brokers(self._directory, count)
                self._brokers = await self._stack.enter_async_context(running)
            return self._brokers

    async def close(self) -> None:
        """Stop Kafka."""
        self._brokers = None
        await self._stack.aclose()

    async def stop_postgres(self, rng: random.Random) -> None:
        """End PostgreSQL without a checkpoint, so that it must recover from its WAL."""
        # An immediate shutdown, or a kill as by the kernel when memory is short.
        self.postgres.process.kill(rng.choice((signal.SIGQUIT, signal.SIGKILL)))
        await self.postgres.process.wait()

    async def start_postgres(self) -> None:
        """Start PostgreSQL again, on the same port and data."""
        await self.postgres.start()

    def small_disk(self) -> AbstractAsyncContextManager[Disk]:
        """Provide a tablespace that can be filled."""
        return small_disk(self.postgres, self.path)


@asynccontextmanager
async def cluster(source: Source) -> AsyncIterator[Cluster]:
    """Run PostgreSQL with a template database made by `source`; Kafka starts on first use."""
    async with data_directory() as directory:
        postgres = EmbeddedPostgres(directory)
        async with postgres, Proxy(postgres.port) as proxy:
            running = Cluster(directory, postgres, proxy, await template(postgres, source))
            try:
                yield running
            finally:
                await running.close()
