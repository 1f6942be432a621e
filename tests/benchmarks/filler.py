"""Process that fills a database with executions through the product's write functions.

    python -m tests.benchmarks.filler EXECUTIONS

Settings are in the environment; the database is migrated and has none of these executions. Events
are folded and written in transactions as by a consumer, but without offsets and watermarks. Prints
the number of stored events as JSON.
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import uvloop

from execution_events import settings as settings_module
from execution_events.cli.progress import Progress
from execution_events.events import Occurrence
from execution_events.projection.fold import first_objects, fold
from execution_events.store.connection import connect
from execution_events.store.write.events import prepare, write_events
from execution_events.store.write.known import KnownExecutions
from tests.benchmarks.dataset import Dataset

_BATCH = 10_000
"""Events of a transaction."""


class Events(Protocol):
    """Events without recurrences, about `events` in number."""

    @property
    def events(self) -> int: ...
    def occurrences(self) -> Iterator[Occurrence]: ...


async def fill(dataset: Events, database_url: str) -> int:
    """Store a dataset and return the number of events."""
    occurrences = dataset.occurrences()
    progress = Progress(dataset.events)
    stored = 0
    async with connect(database_url, "benchmarks", unlimited=True) as connection:
        await prepare(connection)
        while batch := list(islice(occurrences, _BATCH)):
            folded = sorted(fold(batch).values(), key=lambda event: event.identity)
            async with connection.transaction():
                await write_events(connection, folded, first_objects(batch), KnownExecutions())
            stored += len(folded)
            progress.show(stored, "events stored")
    progress.end()
    return stored


def main(executions: int) -> None:
    """Fill the database and print the number of events."""
    url = settings_module.load(os.environ).database.url
    assert url is not None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stored = runner.run(fill(Dataset(executions, long=0), url))
    print(json.dumps({"stored": stored}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
