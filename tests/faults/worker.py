"""A worker that is a process of its own, may be killed, and sends again what was not acknowledged.

    python -m tests.faults.worker SEED BOOTSTRAP_SERVERS TOPIC JOURNAL

Every record has a source and a sequence. Its partition is in the journal before its first attempt,
and its offset after it was acknowledged; the content follows from the seed.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner

from execution_events.embedded import ChildProcess
from tests.faults.author import Author, Message
from tests.faults.oracle import Acknowledged

_NUMBER = 99
"""The worker's number, which no worker inside the harness has."""
_BURST = 40


class _Journal(NamedTuple):
    """The partition of each record that was attempted, and the place of each acknowledged one."""

    attempted: dict[int, int]
    acknowledged: dict[int, tuple[int, int]]


class WorkerProcess:
    """The worker as its supervisor sees it."""

    def __init__(self, seed: int, bootstrap_servers: str, topic: str, journal: Path) -> None:
        self._seed = seed
        self._arguments = [str(seed), bootstrap_servers, topic, str(journal)]
        self._journal = journal

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ChildProcess]:
        """The process, on the journal of its earlier lives."""
        command = [sys.executable, "-m", "tests.faults.worker", *self._arguments]
        async with ChildProcess(command, grace=1) as process:
            yield process

    def written(self) -> int:
        """How many records were acknowledged, to all its lives."""
        return len(_read(self._journal).acknowledged)

    def in_flight(self) -> int:
        """How many records were attempted and not acknowledged."""
        journal = _read(self._journal)
        return len(journal.attempted) - len(journal.acknowledged)

    def acknowledged(self) -> list[Acknowledged]:
        """What the log has promised to keep."""
        author = Author(self._seed, _NUMBER)
        journal = _read(self._journal)
        messages = [author.next(with_source=1) for _ in journal.attempted]
        return [
            Acknowledged(place, messages[number].source, messages[number].sequence)
            for number, place in journal.acknowledged.items()
        ]


def _read(path: Path) -> _Journal:
    attempted, acknowledged = {}, {}
    # The last line of a worker that was killed may be half a line.
    for line in path.read_text().split("\n")[:-1] if path.exists() else ():
        number, partition, offset = json.loads(line)
        if offset is None:
            attempted[number] = partition
        else:
            acknowledged[number] = (partition, offset)
    return _Journal(attempted, acknowledged)


async def _work(seed: int, bootstrap_servers: str, topic: str, path: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    journal = _read(path)
    if path.exists():
        _drop_half_line(path)
    author = Author(seed, _NUMBER)
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap_servers, acks="all", enable_idempotence=True, linger_ms=2
    ) as producer:
        partitions = sorted(await producer.partitions_for(topic))
        with path.open("a", buffering=1) as file:
            number = 0
            while number < len(journal.attempted) or not stop.is_set():
                burst = []
                for _ in range(_BURST):
                    message = author.next(with_source=1)
                    if number not in journal.acknowledged:
                        burst.append((number, message))
                    number += 1
                await _send(producer, topic, partitions, journal, burst, file)


async def _send(
    producer: AIOKafkaProducer,
    topic: str,
    partitions: list[int],
    journal: _Journal,
    burst: list[tuple[int, Message]],
    file: TextIO,
) -> None:
    futures: list[asyncio.Future[Any]] = []
    for number, message in burst:
        partition = journal.attempted.get(number)
        if partition is None:
            partition = _CHOOSE(message.key, partitions, partitions)
            print(json.dumps([number, partition, None]), file=file)
        future = await producer.send(
            topic,
            message.value,
            message.key,
            partition=partition,
            headers=list(message.headers),
        )

        def note(done: asyncio.Future[Any], number: int = number) -> None:
            sent = done.result()
            print(json.dumps([number, sent.partition, sent.offset]), file=file)

        future.add_done_callback(note)
        futures.append(future)
    if futures:
        await asyncio.gather(*futures)


_CHOOSE = DefaultPartitioner()


def _drop_half_line(path: Path) -> None:
    text = path.read_text()
    path.write_text(text[: text.rfind("\n") + 1])


if __name__ == "__main__":
    asyncio.run(_work(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])))
