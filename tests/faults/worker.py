"""A worker that is a process of its own: it publishes through a spool, and may be killed."""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from execution_events.embedded import ChildProcess
from execution_events.publisher.spool_directory import list_spools
from tests.support.spooling_worker import Journal


class WorkerProcess:
    """The worker as its supervisor sees it. All its lives have one spool directory."""

    def __init__(self, environment: Mapping[str, str], directory: Path) -> None:
        self.spools = directory / "spools"
        self._journal = directory / "worker.journal"
        self._environment = {**environment, "EXECUTION_EVENTS_SPOOL_DIR": str(self.spools)}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ChildProcess]:
        """One life of it."""
        command = [sys.executable, "-m", "tests.support.spooling_worker", str(self._journal)]
        async with ChildProcess(command, env=self._environment, grace=1) as process:
            yield process

    def journal(self) -> Journal:
        """What it has published so far."""
        return Journal.read(self._journal)

    def left(self) -> int:
        """How many events are in spools; those that Kafka has not acknowledged are among them."""
        return sum(each.summary.left for each in list_spools(self.spools) if each.summary)
