"""Peers of the comparison: their start commands and guarantees."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.peers import debezium
from tests.benchmarks.peers.job import Job
from tests.benchmarks.trees import THIS
from tests.support import installed

LOCK = Path(__file__).with_name("requirements.txt")

Command = tuple[tuple[str, ...], Mapping[str, str]]
"""Arguments, and variables added to those of this process."""


@dataclass(frozen=True)
class Peer:
    """A row of the table. `start` takes a job and a directory for files that a restart needs."""

    key: str
    title: str
    folds: bool
    """True if it adds counts. Otherwise the last write wins, and counts are not compared."""
    batch: int
    start: Callable[[Job, Path], Awaitable[Command]]


def _module(name: str) -> Callable[[Job, Path], Awaitable[Command]]:
    async def start(job: Job, _: Path) -> Command:
        interpreter = await installed.environment("benchmark-peers", LOCK) / "bin" / "python"
        command = (str(interpreter), "-m", f"tests.benchmarks.peers.{name}")
        return command, {**job.environment(), "PYTHONPATH": str(THIS.root)}

    return start


PEERS = (
    Peer("faststream", "FastStream, executemany", True, 10_000, _module("faststream_peer")),
    Peer("quixstreams", "Quix Streams, sink", False, 10_000, _module("quixstreams_peer")),
    Peer("debezium", "Debezium JDBC sink, unnest", False, 2_000, debezium.start),
)
