"""The conditions under which a zombie counts as overtaken, and a batch as refused."""

import random
from typing import Any, cast

import pytest

from tests.faults import rows_zombie
from tests.faults.consumers import Consumer
from tests.faults.episode import PARTITIONS, Episode, NoFaultError
from tests.faults.rows import row


class _Topic:
    name = "topic"

    def __init__(self, members: int) -> None:
        self._members = members

    async def members(self, group: str) -> set[str]:
        return {str(number) for number in range(self._members)}


class _Database:
    """A fake whose stored offsets advance by `step` per read, except a stalled partition 0."""

    def __init__(self, step: int, *, stalled: bool = False, waits: bool = False) -> None:
        self._offset = 0
        self._step = step
        self._stalled = stalled
        self._waits = waits

    async def progress(self) -> dict[int, int]:
        self._offset += self._step
        progress = dict.fromkeys(range(PARTITIONS), self._offset)
        return progress | {0: 7} if self._stalled else progress

    async def writers_wait(self) -> bool:
        return self._waits


class _Consumer:
    def __init__(self, *fenced: int) -> None:
        self._fenced = list(fenced)
        self.calls: list[str] = []

    async def fenced(self) -> int:
        return self._fenced.pop(0) if len(self._fenced) > 1 else self._fenced[0]

    def is_stopped(self) -> bool:
        return True

    def signal(self, number: int) -> None:
        self.calls.append("signal")

    async def stop(self) -> None:
        self.calls.append("stop")

    async def start(self, fail_point: str) -> None:
        self.calls.append(f"start at {fail_point}")


def episode(victim: _Consumer, other: _Consumer, database: _Database, members: int = 1) -> Episode:
    made = Episode.__new__(Episode)
    made.row = row("zombie-at-point")
    made.rng = random.Random(1)
    made.topic = cast(Any, _Topic(members))
    made.database = cast(Any, database)
    made.consumers = [cast(Consumer, victim), cast(Consumer, other)]
    made.evidence = {"fail point": "fetched:3:stop"}
    made.inconclusive = None
    return made


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_zombie, "_TAKEN_LIMIT", 0.3)
    monkeypatch.setattr(rows_zombie, "_REFUSED_LIMIT", 0.1)
    monkeypatch.setattr(rows_zombie, "_ATTEMPTS", 3)
    monkeypatch.setattr(random.Random, "uniform", lambda rng, low, high: 0.0)


async def run(made: Episode) -> dict[str, object]:
    await made.row.fault(made)
    return made.evidence


async def test_the_zombies_batch_is_refused() -> None:
    made = episode(_Consumer(0, 1), _Consumer(5), _Database(1))
    assert (await run(made))["outcome"] == "the zombie's batch was refused"
    assert made.inconclusive is None


async def test_the_batch_of_a_successor_that_waits_for_the_lock_is_refused() -> None:
    made = episode(_Consumer(0), _Consumer(5, 5, 6), _Database(0, waits=True))
    assert (await run(made))["outcome"] == "its successor's batch was refused"


@pytest.mark.parametrize(
    ("database", "members"),
    [(_Database(1), 2), (_Database(1), 0), (_Database(0), 1), (_Database(1, stalled=True), 1)],
    ids=["both are members", "the group changes", "nothing is stored", "one partition stalls"],
)
async def test_a_zombie_that_is_not_overtaken_stays_stopped(
    database: _Database, members: int
) -> None:
    victim = _Consumer(0)
    with pytest.raises(NoFaultError):
        await run(episode(victim, _Consumer(0), database, members))
    assert victim.calls == []


async def test_the_fault_is_retried_while_no_batch_is_refused() -> None:
    # The successor's batches may be refused for another reason.
    victim = _Consumer(0)
    made = episode(victim, _Consumer(0, 1, 2, 3), _Database(1))

    evidence = await run(made)

    assert evidence["attempts"] == 3
    assert [call[:8] for call in victim.calls] == ["signal", "stop", "start at"] * 2 + ["signal"]
    assert "outcome" not in evidence
    # The oracle decides first: a product that refuses no batch must not look like a missed fault.
    assert made.inconclusive is not None
