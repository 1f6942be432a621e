"""Faults of PostgreSQL and of the network in front of it."""

import asyncio

from tests.faults import disk
from tests.faults.database import WRITER, execute
from tests.faults.episode import MAX_POLL_INTERVAL, Episode, NoFaultError, Row, Server
from tests.faults.proxy import Direction
from tests.faults.source import Source

_BLACK_HOLE = 30
"""Seconds, longer than any single request should wait."""
_DELAY = (0.05, 0.5)
"""Range of the delay of each reply in seconds; a batch waits for several replies."""
_SLOW_RECORDS = 60
"""Records that must be stored meanwhile, or PostgreSQL is not slow but unavailable."""
_LOCK_HELD = 23
"""Seconds, longer than the consumer's lock timeout of 20."""
_WAIT_LIMIT = 15
"""Seconds until a consumer must wait for a lock, back-off included."""
_VICTIMS = 3
"""Deadlocks in one episode."""


async def _restart(episode: Episode) -> None:
    await asyncio.sleep(episode.rng.uniform(0, 1))
    await episode.cluster.stop_postgres(episode.rng)
    await episode.cluster.start_postgres()


async def _terminate(episode: Episode) -> None:
    ended = 0
    for _ in range(5):
        await asyncio.sleep(episode.rng.uniform(0.1, 0.8))
        ended += await _terminate_writers(episode)
    if not ended:
        raise NoFaultError("no session of a consumer was ended")
    episode.evidence["sessions ended"] = ended


async def _down_10_s(episode: Episode) -> None:
    await _down(episode, 10)


async def _down_past_max_poll(episode: Episode) -> None:
    await _down(episode, MAX_POLL_INTERVAL + 7)


async def _down(episode: Episode, seconds: float) -> None:
    before = await episode.topic.members(episode.group)
    await episode.cluster.stop_postgres(episode.rng)
    await asyncio.sleep(seconds)
    await episode.cluster.start_postgres()
    if left := len(before - await episode.topic.members(episode.group)):
        episode.violations.append(f"{left} consumers left their group")


async def _lose_commits(episode: Episode) -> None:
    proxy = episode.cluster.postgres_proxy
    before = proxy.lost_commits
    wanted = episode.rng.randint(1, 3)
    proxy.lose_commits(wanted)

    async def lost() -> bool:
        return proxy.lost_commits >= before + wanted

    await episode.until(lost, 40, f"{wanted} replies to COMMIT are lost")
    episode.evidence["replies lost"] = wanted


async def _reset(episode: Episode) -> None:
    cut = 0
    for _ in range(5):
        await asyncio.sleep(episode.rng.uniform(0.1, 0.8))
        cut += episode.cluster.postgres_proxy.cut()
    if not cut:
        raise NoFaultError("no connection was open")
    episode.evidence["connections reset"] = cut


async def _black_hole(episode: Episode) -> None:
    directions, permanent = black_hole(episode)
    async with episode.cluster.postgres_proxy.black_hole(*directions, permanent=permanent):
        await asyncio.sleep(_BLACK_HOLE)


async def _slow(episode: Episode) -> None:
    """Change the group twice while batches take seconds.

    A rebalance then finds batches in progress: their member commits offsets of partitions that it
    no longer owns, and the new owner's batch is refused.
    """
    proxy = episode.cluster.postgres_proxy
    held_back = proxy.held_back
    async with proxy.delayed(*_DELAY, Direction.TO_CLIENT):
        await episode.until_moving(_SLOW_RECORDS)
        third = episode.new_consumer()
        await third.start()
        await episode.until_joined()
        await episode.until_moving(_SLOW_RECORDS)
        refused = await third.fenced()
        if code := await third.stop():
            episode.violations.append(f"{third.name}: exit code {code} after SIGTERM")
        episode.consumers.remove(third)
        await episode.until_moving(_SLOW_RECORDS)
    refused += sum([await consumer.fenced() for consumer in episode.consumers])
    episode.evidence["outcome"] = f"{'a' if refused else 'no'} batch was refused"
    episode.evidence["replies delayed"] = proxy.held_back - held_back


def black_hole(episode: Episode) -> tuple[tuple[Direction, ...], bool]:
    """Choose the blocked directions, and whether the open connections stay silent permanently."""
    directions = episode.rng.choice(((Direction.TO_SERVER,), (Direction.TO_CLIENT,), ()))
    permanent = episode.rng.random() < 0.5
    way = " and ".join(direction.value for direction in directions) or "both ways"
    episode.evidence["black hole"] = f"{way}{', permanent' if permanent else ''}"
    return directions, permanent


async def _deadlock(episode: Episode) -> None:
    async with episode.database.connect() as connection:
        # The consumer's session detects the deadlock first and is the victim.
        await connection.execute("SET deadlock_timeout = '10min'; BEGIN")
        await connection.execute("LOCK TABLE execution_events.execution IN EXCLUSIVE MODE")
        victims = 0
        for _ in range(_VICTIMS):
            await connection.execute("SAVEPOINT before")
            if not await _until_writers_wait(episode):
                break
            await connection.execute(
                "LOCK TABLE execution_events.partition_progress IN EXCLUSIVE MODE"
            )
            await connection.execute("ROLLBACK TO SAVEPOINT before")
            victims += 1
            # No later batch may hide a record that a failed batch lost.
            await episode.load.stop()
        await connection.execute("ROLLBACK")
    if not victims:
        raise NoFaultError("no consumer waited for a lock")
    episode.evidence["deadlocks"] = victims


async def _lock_holder(episode: Episode) -> None:
    async with episode.database.connect() as connection:
        await connection.execute("BEGIN")
        await connection.execute("LOCK TABLE execution_events.event IN ACCESS EXCLUSIVE MODE")
        if not await _until_writers_wait(episode):
            raise NoFaultError("no consumer waited for the lock")
        await episode.load.stop()
        await asyncio.sleep(_LOCK_HELD)
        await connection.execute("ROLLBACK")


async def _read_only(episode: Episode) -> None:
    url = episode.cluster.postgres.dsn()
    setting = f"ALTER DATABASE {episode.database.name} {{}} default_transaction_read_only"
    await execute(url, setting.format("SET") + " = on")
    if not await _terminate_writers(episode):
        raise NoFaultError("no session of a consumer was ended")
    await asyncio.sleep(episode.rng.uniform(3, 5))
    stored = await episode.stored()
    await asyncio.sleep(1)
    if await episode.stored() != stored:
        raise NoFaultError("the consumers could still write")
    await episode.load.stop()
    await execute(url, setting.format("RESET"))


async def _disk_full(episode: Episode) -> None:
    assert episode.disk is not None
    await asyncio.to_thread(disk.fill, episode.disk)

    async def stalled() -> bool:
        before = await episode.stored()
        await asyncio.sleep(1.5)
        return await episode.stored() == before and episode.load.sent > before

    await episode.until(stalled, 30, "nothing more is stored")
    await episode.load.stop()
    await asyncio.sleep(episode.rng.uniform(1, 3))
    disk.empty(episode.disk)


async def _terminate_writers(episode: Episode) -> int:
    async with episode.database.connect() as connection:
        ended: int = await connection.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND usename = $1",
            WRITER,
        )
        return ended


async def _until_writers_wait(episode: Episode) -> bool:
    """Return True as soon as a consumer begins to wait for a lock, False if none does."""
    # The victim checks for a deadlock only once, a second after it began to wait.
    try:
        async with asyncio.timeout(_WAIT_LIMIT):
            while not await episode.database.writers_wait(begun_within=0.7):
                await asyncio.sleep(0.05)
    except TimeoutError:
        return False
    return True


def _needs_time_limits(source: Source) -> str | None:
    return None if Episode.has_time_limits(source) else "this source has no max poll setting"


def _needs_disk(source: Source) -> str | None:
    return disk.missing()


ROWS = (
    Row("pg-restart", "PostgreSQL crashes and restarts", 20, _restart, alone=True),
    Row("pg-terminate", "The consumers' PostgreSQL sessions are terminated", 20, _terminate),
    Row("pg-down", "PostgreSQL down for 10 s", 15, _down_10_s, alone=True),
    Row(
        "pg-down-long",
        "PostgreSQL down for longer than the max poll interval",
        2,
        _down_past_max_poll,
        alone=True,
        missing=_needs_time_limits,
    ),
    Row("pg-commit-lost", "Reply to COMMIT lost", 10, _lose_commits, proxied=Server.POSTGRES),
    Row("pg-reset", "Connections to PostgreSQL reset (RST)", 5, _reset, proxied=Server.POSTGRES),
    Row(
        "pg-black-hole",
        "Network black hole of 30 s before PostgreSQL",
        5,
        _black_hole,
        proxied=Server.POSTGRES,
    ),
    Row(
        "pg-slow",
        "PostgreSQL's replies delayed by 50-500 ms; the group changes",
        4,
        _slow,
        proxied=Server.POSTGRES,
    ),
    Row("pg-deadlock", "Deadlock in PostgreSQL", 3, _deadlock),
    Row("pg-lock-holder", "Table lock held past the lock timeout", 2, _lock_holder),
    Row("pg-read-only", "PostgreSQL read-only", 3, _read_only),
    Row(
        "pg-disk-full",
        "PostgreSQL's disk full",
        2,
        _disk_full,
        small_disk=True,
        alone=True,
        missing=_needs_disk,
    ),
)
