"""A partition stalls only while it has a record that is not stored."""

from typing import Any, cast

from tests.faults.episode import PARTITIONS, Episode
from tests.faults.oracle import Acknowledged
from tests.faults.pace import OTHERS_LIMIT, Pace, check_others


class Log:
    """The end of each partition, as acknowledged to workers."""

    def __init__(self) -> None:
        self.ends: dict[int, int] = {}

    def acknowledged(self) -> list[Acknowledged]:
        return [Acknowledged((partition, end - 1)) for partition, end in self.ends.items()]


def pace(log: Log) -> Pace:
    return Pace(cast(Any, None), log.acknowledged)


def test_a_partition_stalls_while_a_record_waits() -> None:
    log = Log()
    measured = pace(log)
    log.ends = {0: 5, 1: 5}
    measured.record({0: 1, 1: 1}, 100.0)
    measured.record({0: 1, 1: 3}, 104.0)
    measured.record({0: 1, 1: 3}, 107.0)
    assert measured.stalls() == {0: 7.0, 1: 3.0}


def test_the_longest_stall_counts() -> None:
    log = Log()
    measured = pace(log)
    log.ends = {0: 5}
    for stored, now in ((1, 100.0), (1, 104.0), (2, 105.0), (2, 107.0)):
        measured.record({0: stored}, now)
    assert measured.stalls() == {0: 4.0}


def test_a_fully_stored_partition_does_not_stall() -> None:
    log = Log()
    measured = pace(log)
    log.ends = {0: 5}
    measured.record({0: 5}, 100.0)
    measured.record({0: 5}, 150.0)
    log.ends = {0: 6}
    measured.record({0: 5}, 151.0)
    assert measured.stalls() == {0: 1.0}


def test_a_partition_without_a_stored_offset_stalls() -> None:
    log = Log()
    measured = pace(log)
    log.ends = {0: 5}
    measured.record({}, 100.0)
    measured.record({}, 120.0)
    assert measured.stalls() == {0: 20.0}


async def test_a_partition_without_new_records_is_idle() -> None:
    log = Log()
    log.ends = {0: 5, 1: 5}

    class Database:
        async def progress(self) -> dict[int, int]:
            return {0: 5, 1: 5}

    async with Pace(Database(), log.acknowledged) as measured:
        log.ends = {0: 6, 1: 5}
        measured.record({0: 5, 1: 5}, 100.0)
        assert measured.idle({0, 1, 2}) == {1, 2}


def test_a_long_stall_of_another_partition_is_a_violation() -> None:
    log = Log()
    measured = pace(log)
    log.ends = dict.fromkeys(range(PARTITIONS), 5)
    measured.record(dict.fromkeys(range(PARTITIONS), 1), 100.0)
    measured.record({0: 1} | dict.fromkeys(range(1, PARTITIONS), 2), 100.0 + OTHERS_LIMIT + 1)
    episode = Episode.__new__(Episode)
    episode.evidence, episode.violations, episode.inconclusive = {}, [], None

    check_others(episode, measured, set(range(1, PARTITIONS)))
    assert episode.violations == []
    check_others(episode, measured, {0, 1})
    [violation] = episode.violations
    assert violation.startswith("partition 0 stalled for 11.0 s")
    assert episode.inconclusive is None
