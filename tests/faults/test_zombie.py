"""What must be seen before a consumer counts as overtaken, and as refused."""

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
    """Each look at the stored offsets finds them `step` further on; partition 0 may stand."""

    def __init__(self, step: int, *, stands: bool = False, waits: bool = False) -> None:
        self._offset = 0
        self._step = step
        self._stands = stands
        self._waits = waits

    async def progress(self) -> dict[int, int]:
        self._offset += self._step
        progress = dict.fromkeys(range(PARTITIONS), self._offset)
        return progress | {0: 7} if self._stands else progress

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
    made.proves_nothing = None
    return made


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_zombie, "_TAKEN_LIMIT", 0.3)
    monkeypatch.setattr(rows_zombie, "_REFUSED_LIMIT", 0.1)
    monkeypatch.setattr(random.Random, "uniform", lambda rng, least, most: 0.0)


async def run(made: Episode) -> dict[str, object]:
    await made.row.fault(made)
    return made.evidence


async def test_the_zombie_is_refused() -> None:
    made = episode(_Consumer(0, 1), _Consumer(5), _Database(1))
    assert (await run(made))["outcome"] == "the zombie's batch was refused"
    assert made.proves_nothing is None


async def test_its_successor_is_refused_that_waits_for_its_lock() -> None:
    made = episode(_Consumer(0), _Consumer(5, 5, 6), _Database(0, waits=True))
    assert (await run(made))["outcome"] == "its successor's batch was refused"


@pytest.mark.parametrize(
    ("database", "members"),
    [(_Database(1), 2), (_Database(1), 0), (_Database(0), 1), (_Database(1, stands=True), 1)],
    ids=["both are members", "the group changes", "nothing is stored", "one partition stands"],
)
async def test_nobody_wakes_that_is_not_overtaken(database: _Database, members: int) -> None:
    victim = _Consumer(0)
    with pytest.raises(NoFaultError):
        await run(episode(victim, _Consumer(0), database, members))
    assert victim.calls == []


async def test_tries_again_where_no_batch_is_refused() -> None:
    # Its successor may be refused for a reason of its own.
    victim = _Consumer(0)
    made = episode(victim, _Consumer(0, 1, 2, 3), _Database(1))

    evidence = await run(made)

    assert evidence["attempts"] == 3
    assert [call[:8] for call in victim.calls] == ["signal", "stop", "start at"] * 2 + ["signal"]
    assert "outcome" not in evidence
    # The oracle speaks first: a product that refuses nothing must not pass for a harmless fault.
    assert made.proves_nothing is not None
