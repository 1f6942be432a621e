"""PostgreSQL loses commits: by a failover to a lagging standby, or by a restored backup."""

from tests.faults.episode import PARTITIONS, Episode, NoFaultError, Row
from tests.faults.own_postgres import OwnPostgres

_LOST = 50
"""Offsets of each partition that are stored and then lost."""
_IDLE = PARTITIONS // 2
"""Partitions that receive no further record, so that no batch of theirs can be refused."""
_CAUGHT_UP_LIMIT = 30
"""Seconds from the server's return until everything must be stored again."""


async def _failover(episode: Episode) -> None:
    own = _own(episode)
    standby = await episode.stack.enter_async_context(own.standby())
    await episode.until_moving()
    async with standby.link.refusing():
        believed, idle = await _move_on(episode)
        await own.end()
        episode.database.move_to(standby.postgres.dsn())
        episode.watch.forget()
        await standby.promote()
    await _note_lost(episode, believed, idle)
    own.proxy.retarget(standby.postgres.port)
    await _caught_up(episode, idle)


async def _restore(episode: Episode) -> None:
    own = _own(episode)
    backup = own.postgres.home / "backup"
    await own.backup(backup)
    believed, idle = await _move_on(episode)
    await own.end()
    episode.watch.forget()
    async with own.proxy.refusing():
        await own.restore(backup)
        await _note_lost(episode, believed, idle)
    await _caught_up(episode, idle)


def _own(episode: Episode) -> OwnPostgres:
    assert episode.own_postgres is not None
    return episode.own_postgres


async def _move_on(episode: Episode) -> tuple[dict[int, int], set[int]]:
    """Store records of each partition that will be lost, then leave some partitions idle.

    Return the stored offsets and the idle partitions.
    """
    before = await episode.database.progress() or {}

    async def moved() -> bool:
        progress = await episode.database.progress() or {}
        return all(progress.get(p, 0) >= before.get(p, 0) + _LOST for p in range(PARTITIONS))

    await episode.until(moved, 60, f"{_LOST} more records of each partition are stored")
    idle = set(episode.rng.sample(range(PARTITIONS), _IDLE))
    await episode.load.pause(idle)
    ends = await episode.topic.ends(idle)

    async def all_stored() -> bool:
        progress = await episode.database.progress() or {}
        return all(progress.get(partition) == end for partition, end in ends.items())

    await episode.until(all_stored, 30, f"all records of partitions {idle} are stored")
    return await episode.database.progress() or {}, idle


async def _note_lost(episode: Episode, believed: dict[int, int], idle: set[int]) -> None:
    stored = await episode.database.progress() or {}
    lost = {p: believed[p] - stored.get(p, 0) for p in believed}
    episode.evidence["offsets lost"] = sum(max(number, 0) for number in lost.values())
    if unaffected := [partition for partition in idle if lost[partition] <= 0]:
        raise NoFaultError(f"partitions {unaffected} lost nothing")


async def _caught_up(episode: Episode, idle: set[int]) -> None:
    """Check that everything is stored in time after the server's return."""
    episode.healed()
    ends = await episode.topic.ends()
    behind: dict[int, int] = {}

    async def caught_up() -> bool:
        progress = await episode.database.progress() or {}
        behind.clear()
        behind.update(
            {p: e - progress.get(p, 0) for p, e in ends.items() if progress.get(p, 0) < e}
        )
        return not behind

    seconds = await episode.seconds_until(caught_up, _CAUGHT_UP_LIMIT)
    episode.evidence["caught up after"] = seconds
    if seconds is None:
        reasons = [await consumer.reasons() for consumer in episode.consumers]
        episode.violations.append(
            f"offsets not stored after {_CAUGHT_UP_LIMIT} s: {behind}"
            f" (idle partitions: {sorted(idle)}); the consumers' reasons: {reasons}"
        )


ROWS = (
    Row(
        "pg-failover",
        "Failover to a standby without the last commits; some partitions idle",
        10,
        _failover,
        worker_for_each_partition=True,
        own_postgres=True,
    ),
    Row(
        "pg-restore",
        "Backup restored under running consumers; some partitions idle",
        10,
        _restore,
        worker_for_each_partition=True,
        own_postgres=True,
    ),
)
