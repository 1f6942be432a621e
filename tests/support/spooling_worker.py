"""A worker that publishes through a spool until it is killed, and writes a journal.

    python -m tests.support.spooling_worker JOURNAL [--interval SECONDS] [--beats FILE]

Settings are in the environment. The journal has one line for each event before the call of
`publish` and one after its return. Every event has a unique name and a random count, so that a lost
event cannot hide a duplicate. Each task waits for `--interval` after an event. While the event loop
runs, `--beats` gets a line with the monotonic time every 0.1 s.
"""

import argparse
import asyncio
import random
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from execution_events import Event, Publisher
from execution_events.events import RECORD_COUNT_MAX

_TASKS = 8
_EXECUTIONS = 20
BEAT = 0.1
"""Seconds between two beats."""


class Journal(NamedTuple):
    """Counts by name, of events whose publishing has begun and of durable ones."""

    begun: dict[str, int]
    durable: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> "Journal":
        """Read all complete lines; a kill may have cut the last one."""
        journal = cls({}, {})
        for line in path.read_text().split("\n")[:-1] if path.exists() else ():
            state, name, count = line.split()
            (journal.begun if state == "begun" else journal.durable)[name] = int(count)
        return journal


async def _work(publisher: Publisher, journal: Path, interval: float) -> None:
    with journal.open("a", buffering=1) as file:
        while True:
            name = f"job.{secrets.token_hex(8)}"
            event = Event(
                execution_id=f"execution-{random.randrange(_EXECUTIONS)}",
                namespace="tenant",
                object_name="job",
                name=name,
                reason="启动##ActionStart",
                elem_type="KubeDAG.init",
                elem_id="job-a",
                action_name="create",
                count=random.randint(1, RECORD_COUNT_MAX),
            )
            print("begun", name, event.count, file=file)
            await publisher.publish(event)
            print("durable", name, event.count, file=file)
            await asyncio.sleep(interval)


async def _beat(beats: Path) -> None:
    with beats.open("a", buffering=1) as file:
        while True:
            print(time.monotonic(), file=file)
            await asyncio.sleep(BEAT)


async def _main(journal: Path, interval: float, beats: Path | None) -> None:
    if journal.exists():
        # The next line must not continue one that was cut.
        text = journal.read_text()
        journal.write_text(text[: text.rfind("\n") + 1])
    async with Publisher.from_settings() as publisher, asyncio.TaskGroup() as group:
        for _ in range(_TASKS):
            group.create_task(_work(publisher, journal, interval))
        if beats is not None:
            group.create_task(_beat(beats))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("journal", type=Path)
    parser.add_argument("--interval", type=float, default=0.0)
    parser.add_argument("--beats", type=Path)
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.journal, arguments.interval, arguments.beats))
