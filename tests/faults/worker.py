"""A worker that is a process of its own: it publishes through a spool, and may be killed."""

import json
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

from execution_events.embedded import ChildProcess
from execution_events.publisher.spool.directory import list_spools
from tests.support.spooling_worker import Journal

_HOLD = 30 * 24 * 3600
"""Seconds after its first attempt in which a record may be sent again."""


class WorkerProcess:
    """The worker as its supervisor sees it. All its lives have one spool directory.

    They are started by `command`, such as `env` with variables for them alone; each of their tasks
    waits for `interval` seconds after an event.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        directory: Path,
        *,
        command: Sequence[str] = (),
        interval: float = 0.0,
    ) -> None:
        self.spools = directory / "spools"
        self.beats = directory / "worker.beats"
        self._journal = directory / "worker.journal"
        self._command = [
            *(*command, sys.executable, "-m", "tests.support.spooling_worker"),
            *(str(self._journal), f"--interval={interval}", f"--beats={self.beats}"),
        ]
        self._environment = {**environment, "EXECUTION_EVENTS_SPOOL_DIR": str(self.spools)}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ChildProcess]:
        """One life of it."""
        async with ChildProcess(self._command, env=self._environment, grace=1) as process:
            yield process

    def journal(self) -> Journal:
        """What it has published so far."""
        return Journal.read(self._journal)

    def left(self) -> int:
        """How many events are in spools; those that Kafka has not acknowledged are among them."""
        return sum(each.summary.pending for each in list_spools(self.spools) if each.summary)

    def refused(self) -> int:
        """How many events are in spools because Kafka has refused them."""
        return sum(each.summary.refused for each in list_spools(self.spools) if each.summary)

    def held(self) -> set[str]:
        """The names of the events that were attempted too long ago, as the files tell.

        Only where no process uses the spools.
        """
        horizon = (time.time() - _HOLD) * 1000
        names = set()
        for path in self.spools.glob("spool-*.db"):
            with closing(sqlite3.connect(path)) as connection:
                rows = connection.execute(
                    "SELECT value FROM record WHERE refused IS NULL AND attempted_at < ?",
                    (horizon,),
                )
                names |= {json.loads(value)["metadata"]["name"] for (value,) in rows}
        return names
