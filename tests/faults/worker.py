"""A worker in a separate process that publishes through a spool and can be killed."""

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
"""Seconds after the first attempt in which a record may be sent again."""


class WorkerProcess:
    """A supervised worker, all of whose lives share one spool directory.

    `command` is a prefix of its command, such as `env` with variables; each of its tasks waits
    for `interval` seconds after an event.
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
        """Run the worker for one life."""
        async with ChildProcess(self._command, env=self._environment, grace=1) as process:
            yield process

    def journal(self) -> Journal:
        """Return the journal of all lives so far."""
        return Journal.read(self._journal)

    def left(self) -> int:
        """Return the number of events left in spools, among them all unacknowledged ones."""
        return sum(each.summary.pending for each in list_spools(self.spools) if each.summary)

    def refused(self) -> int:
        """Return the number of events in spools that Kafka refused."""
        return sum(each.summary.refused for each in list_spools(self.spools) if each.summary)

    def held(self) -> set[str]:
        """Return the names of the events first attempted too long ago, from the spool files.

        No process may use the spools meanwhile.
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
