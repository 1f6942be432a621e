"""Partitions that cannot be read: they halt or wait while all others continue."""

import asyncio
import re
import signal
from pathlib import Path

from tests.faults.episode import PARTITIONS, Episode, NoFaultError, Row
from tests.faults.pace import check_others, pace_of
from tests.faults.rows_log import accept, halted_partitions, needs_accept
from tests.faults.segments import StoredBatch, batches, flip

_HALT_LIMIT = 20
"""Seconds until the partition of a corrupt batch must be halted."""
_WATCHED = 16
"""Seconds for which the others are watched: a halted partition is retried every 15."""


async def _corrupt_batch(episode: Episode) -> None:
    """Corrupt a batch ahead of running consumers, then restart one of them."""
    partition = episode.rng.randrange(PARTITIONS)
    segment = _segment(episode, partition)
    for consumer in episode.consumers:
        consumer.signal(signal.SIGSTOP)
    # Records already in transit are not read from the disk again.
    await asyncio.sleep(1)
    end = (await episode.topic.ends())[partition]

    async def written() -> bool:
        return any(batch.base >= end for batch in batches(segment))

    await episode.until(written, 10, "a batch that no consumer has fetched is written")
    batch = next(batch for batch in batches(segment) if batch.base >= end)
    await episode.note_log()
    flip(segment, batch)
    async with pace_of(episode) as pace:
        for consumer in episode.consumers:
            consumer.signal(signal.SIGCONT)
        await _until_named(episode, partition, batch, "halted after")
        restarted = episode.rng.choice(episode.consumers)
        if code := await restarted.stop():
            episode.violations.append(f"{restarted.name}: exit code {code} after SIGTERM")
        await restarted.start()
        await episode.until_joined()
        await _until_named(episode, partition, batch, "halted again after")
        await _watch(episode)
        check_others(episode, pace, set(range(PARTITIONS)) - {partition})
    progress = await episode.database.progress() or {}
    if progress.get(partition) != batch.base:
        episode.violations.append(
            f"partition {partition} is stored up to {progress.get(partition)},"
            f" not to the corrupt batch at {batch.base}"
        )
    await _heal(episode, partition, segment, batch)


async def _corrupt_last_stored(episode: Episode) -> None:
    """Corrupt the batch that the next assignment reads to verify the log."""
    partition = episode.rng.randrange(PARTITIONS)
    segment = _segment(episode, partition)
    for code in await asyncio.gather(*(consumer.stop() for consumer in episode.consumers)):
        if code:
            episode.violations.append(f"a consumer's exit code after SIGTERM is {code}")
    stored = (await episode.database.progress() or {}).get(partition, 0)
    if not stored:
        raise NoFaultError(f"partition {partition} has nothing stored")
    [batch] = [batch for batch in batches(segment) if stored - 1 in batch.offsets]
    await episode.note_log()
    flip(segment, batch)
    await asyncio.gather(*(consumer.start() for consumer in episode.consumers))
    await episode.until_joined()
    async with pace_of(episode) as pace:
        await _until_named(episode, partition, batch, "halted after")
        await _watch(episode)
        check_others(episode, pace, set(range(PARTITIONS)) - {partition})
    await _heal(episode, partition, segment, batch)


async def _no_leader(episode: Episode) -> None:
    """Restart a consumer while one broker, and so the only replica of its partitions, is down."""
    coordinator = await episode.topic.coordinator(episode.group)
    leaders = await episode.topic.leaders()
    # Without its coordinator the whole group would stop.
    victim = episode.rng.choice(sorted(set(leaders.values()) - {coordinator}))
    led = {partition for partition, leader in leaders.items() if leader == victim}
    others = leaders.keys() - led
    episode.evidence["killed"] = f"node {victim}, leader of {sorted(led)}"
    broker = episode.brokers.by_id(victim)
    async with pace_of(episode) as pace:
        await broker.kill()

        async def leaderless() -> bool:
            now = await episode.topic.leaders()
            return {partition for partition, leader in now.items() if leader == -1} == led

        await episode.until(leaderless, 30, f"partitions {led} have no leader")
        restarted = episode.rng.choice(episode.consumers)
        if code := await restarted.stop():
            episode.violations.append(f"{restarted.name}: exit code {code} after SIGTERM")
        await restarted.start()
        await episode.until_joined()
        await asyncio.sleep(_WATCHED)
        check_others(episode, pace, others)
    await broker.start()
    await broker.until_ready()


def _segment(episode: Episode, partition: int) -> Path:
    [broker] = episode.brokers.nodes
    return broker.segment(episode.topic.name, partition)


async def _until_named(episode: Episode, partition: int, batch: StoredBatch, event: str) -> None:
    """Return once the partition is halted and `/readyz` names it with an offset of the batch."""
    offsets = range(batch.base, batch.last + 2)

    async def named() -> bool:
        if partition not in await halted_partitions(episode.consumers):
            return False
        reasons = [reason for c in episode.consumers for reason in await c.reasons()]
        return any(_names(reason, partition, offsets) for reason in reasons)

    episode.evidence[event] = seconds = await episode.seconds_until(named, _HALT_LIMIT)
    if seconds is None:
        halted = await halted_partitions(episode.consumers)
        reasons = [await consumer.reasons() for consumer in episode.consumers]
        episode.violations.append(
            f"partition {partition} is corrupt at {batch.base}: halted are {halted or 'none'},"
            f" the reasons are {reasons}"
        )


def _names(reason: str, partition: int, offsets: range) -> bool:
    if not re.search(rf"\bpartition {partition}\b", reason):
        return False
    return any(int(number) in offsets for number in re.findall(r"\boffset (\d+)", reason))


async def _watch(episode: Episode) -> None:
    """Check that the group's members stay the same: replacing a client stops all partitions."""
    before = await episode.topic.members(episode.group)
    await asyncio.sleep(_WATCHED)
    if not before or await episode.topic.members(episode.group) != before:
        episode.violations.append("a client was replaced while nothing changed")


async def _heal(episode: Episode, partition: int, segment: Path, batch: StoredBatch) -> None:
    """Repair the batch, or delete it and continue after it."""
    if episode.seed % 2:
        episode.evidence["healed by"] = "repair"
        flip(segment, batch)
        return
    episode.evidence["healed by"] = "deletion"
    stored = (await episode.database.progress() or {}).get(partition, 0)
    begin = batch.last + 1
    await episode.topic.delete_records({partition: begin})
    episode.lost[partition] = range(stored, begin)
    if episode.lost[partition]:
        await accept(episode)


ROWS = (
    Row(
        "corrupt-batch",
        "Corrupt batch in one partition; a consumer restarts",
        10,
        _corrupt_batch,
        missing=needs_accept,
    ),
    Row(
        "corrupt-last-stored",
        "Corrupt batch with a partition's last stored record; the consumers restart",
        10,
        _corrupt_last_stored,
        missing=needs_accept,
    ),
)
ROWS_OF_THREE = (
    Row(
        "three-no-leader",
        "3 brokers, replication factor 1: one is down; a consumer restarts",
        10,
        _no_leader,
        brokers=3,
        replication=1,
        worker_for_each_partition=True,
        alone=True,
        is_long=True,
    ),
)
