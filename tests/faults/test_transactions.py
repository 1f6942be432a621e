"""The transactional worker resends aborted messages and acknowledges committed ones."""

import asyncio
import random
from typing import Any, NamedTuple, cast

import pytest
from aiokafka.errors import KafkaError

from tests.faults.author import Author
from tests.faults.database import EpisodeDatabase
from tests.faults.episode import Episode
from tests.faults.topic import Topic
from tests.faults.transactions import TransactionalWorker


class Sent(NamedTuple):
    partition: int
    offset: int


class Log:
    """A fake Kafka that records each transaction's messages; commits numbered in `lost` fail."""

    def __init__(self, *lost: int) -> None:
        self.transactions: list[tuple[str, list[bytes]]] = []
        self.client = self
        self._lost = lost
        self._values: list[bytes] = []
        self._offset = 0
        self._commits = 0

    async def partitions_for(self, topic: str) -> set[int]:
        return {0, 1}

    async def begin_transaction(self) -> None:
        self._values = []

    async def send(
        self, topic: str, value: bytes, key: bytes, *, partition: int, headers: Any
    ) -> asyncio.Future[Sent]:
        self._values.append(value)
        self._offset += 1
        future: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        future.set_result(Sent(partition, self._offset))
        return future

    async def commit_transaction(self) -> None:
        self._commits += 1
        if self._commits in self._lost:
            self.transactions.append(("unknown", self._values))
            raise KafkaError
        self.transactions.append(("committed", self._values))

    async def abort_transaction(self) -> None:
        self.transactions.append(("aborted", self._values))

    async def stop(self) -> None:
        pass


async def work(monkeypatch: pytest.MonkeyPatch, log: Log, seed: int) -> TransactionalWorker:
    async def connect(worker: TransactionalWorker) -> Log:
        return log

    monkeypatch.setattr(TransactionalWorker, "_connect", connect)
    monkeypatch.setattr("tests.faults.transactions._OPEN", 0.001)
    worker = TransactionalWorker(Author(seed, 2), "", "topic", random.Random(seed))
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(stop))
    while len(log.transactions) < 12:
        await asyncio.sleep(0.01)
    stop.set()
    await running
    return worker


async def test_aborted_messages_are_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    worker = await work(monkeypatch, log, 1)

    ends = [end for end, _ in log.transactions]
    assert (ends.count("committed"), ends.count("aborted")) == (worker.committed, worker.aborted)
    for (end, values), (_, following) in zip(log.transactions, log.transactions[1:], strict=False):
        assert (following[: len(values)] == values) == (end == "aborted")
    # Partitions end with records that no consumer reads.
    assert ends[-1] == "aborted"
    committed = [
        value for end, values in log.transactions if end == "committed" for value in values
    ]
    assert len(worker.acknowledged) == len(committed)


async def test_after_a_lost_commit_only_messages_with_a_source_are_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log(1, 2, 3)
    worker = await work(monkeypatch, log, 1)

    ends = [end for end, _ in log.transactions]
    lost = again = 0
    for (end, values), (_, following) in zip(log.transactions, log.transactions[1:], strict=False):
        if end == "unknown":
            lost += len(values)
            again += sum(value in following for value in values)
    assert worker.unknown == ends.count("unknown") == 3
    assert 0 < again < lost
    committed = [
        value for end, values in log.transactions if end == "committed" for value in values
    ]
    assert len(worker.acknowledged) == len(committed)


class _Topic:
    def __init__(self, ends: list[dict[int, int]], high: dict[int, int]) -> None:
        self._ends = ends
        self._high = high

    async def ends(self) -> dict[int, int]:
        return self._ends.pop(0) if len(self._ends) > 1 else self._ends[0]

    async def high_watermarks(self) -> dict[int, int]:
        return self._high


class _Database:
    async def progress(self) -> dict[int, int]:
        return {0: 7}


def episode(ends: list[dict[int, int]], high: dict[int, int]) -> Episode:
    made = Episode.__new__(Episode)
    made.topic = cast(Topic, _Topic(ends, high))
    made.database = cast(EpisodeDatabase, _Database())
    return made


async def test_caught_up_means_past_the_last_control_record() -> None:
    assert await episode([{0: 7}], {0: 7}).until_caught_up(0.3) == {0: 7}


@pytest.mark.parametrize(
    ("ends", "high", "what"),
    [
        # The stored offset is before a control record.
        ([{0: 8}], {0: 8}, "stored"),
        # Records of an open transaction, and later ones, are not readable yet.
        ([{0: 7}], {0: 9}, "still open"),
    ],
)
async def test_not_caught_up_before_a_control_record_or_an_open_transaction(
    ends: list[dict[int, int]], high: dict[int, int], what: str
) -> None:
    with pytest.raises(TimeoutError, match=what):
        await episode(ends, high).until_caught_up(0.3)
