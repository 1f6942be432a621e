"""Changes of the log itself: lost records must halt a partition, new partitions must be read."""

import asyncio
import re
import signal

from tests.faults.author import Author
from tests.faults.consumers import Consumer
from tests.faults.episode import PARTITIONS, RATE, SESSION_TIMEOUT, Episode, NoFaultError, Row
from tests.faults.load import Load, Worker
from tests.faults.oracle import judge
from tests.faults.source import Source

_HALT_LIMIT = 60
"""Seconds until a partition must be halted."""
_HALTED = re.compile(r'^execution_events_partition_halted{.*partition="(\d+)".*} 1(?:\.0)?$', re.M)
_GROWN = 2 * PARTITIONS
_BEFORE = 10**12
"""Shift that puts the offsets of an old log before those of the new one."""


async def _records_deleted(episode: Episode) -> None:
    """Delete records of one partition ahead of lagging consumers, of another while none runs."""
    running, stopped = episode.rng.sample(range(PARTITIONS), 2)
    for consumer in episode.consumers:
        consumer.signal(signal.SIGSTOP)
    # Records must be left to delete beyond those already in transit.
    await asyncio.sleep(1)
    await _delete_to_the_end(episode, running)
    for consumer in episode.consumers:
        consumer.signal(signal.SIGCONT)
    await until_halted(episode, {running})

    await asyncio.gather(*(consumer.stop() for consumer in episode.consumers))
    await asyncio.sleep(1)
    await _delete_to_the_end(episode, stopped)
    await asyncio.gather(*(consumer.start() for consumer in episode.consumers))
    await until_halted(episode, {running, stopped})
    progress = await episode.database.progress() or {}
    begins = await episode.topic.begins()
    for partition in (running, stopped):
        if progress[partition] >= begins[partition]:
            episode.violations.append(
                f"partition {partition} is stored up to {progress[partition]},"
                " past the deleted records"
            )
        episode.lost[partition] = range(progress[partition], begins[partition])
    await accept(episode)


async def _delete_to_the_end(episode: Episode, partition: int) -> None:
    end = (await episode.topic.ends())[partition]
    progress = await episode.database.progress() or {}
    if end <= progress.get(partition, 0):
        raise NoFaultError(f"all records of partition {partition} are stored")
    await episode.note_log()
    await episode.topic.delete_records({partition: end})


async def _retention(episode: Episode) -> None:
    """Delete the stored records, then change the group while PostgreSQL is down."""
    stored = await episode.database.progress() or {}
    await episode.note_log()
    await episode.topic.delete_records(stored)
    before = await episode.topic.members(episode.group)
    await episode.cluster.stop_postgres(episode.rng)
    try:
        victim = episode.rng.choice(episode.consumers)
        victim.signal(signal.SIGKILL)
        await asyncio.sleep(SESSION_TIMEOUT + 4)
    finally:
        await episode.cluster.start_postgres()
    episode.healed()
    await episode.until_joined()
    if not before & await episode.topic.members(episode.group):
        episode.violations.append("the surviving consumer left its group")


async def _topic_recreated(episode: Episode) -> None:
    await episode.load.stop()
    old = await episode.until_caught_up(_HALT_LIMIT)
    await judge_log_before(episode, old)
    await episode.topic.delete()
    await asyncio.sleep(1)
    await episode.topic.create(PARTITIONS)
    # The same messages again: those with a source must not count twice.
    worker = Worker(
        Author(episode.seed, 0),
        episode.brokers.bootstrap_servers,
        episode.topic.name,
        4 * RATE,
    )
    async with Load([worker]) as load:

        async def longer() -> bool:
            ends = await episode.topic.ends()
            return all(ends[partition] > offset for partition, offset in old.items())

        # The old offsets are then in the range of the new log and prove nothing.
        await episode.until(longer, _HALT_LIMIT, "the new log is longer than the old one")
        await load.stop()
        episode.acknowledged = load.acknowledged
    await until_halted(episode, set(old))
    if await episode.database.progress() != old:
        episode.violations.append("records of the new log were stored before it was accepted")
    await accept(episode)


async def judge_log_before(episode: Episode, ends: dict[int, int]) -> None:
    """Judge the records of a log that ends at `ends`, before another replaces it.

    For the final verdict its records come before the new log's, at shifted offsets.
    """
    await episode.note_log()
    if 0 in ends.values():
        raise NoFaultError(f"a partition was empty: {ends}")
    old_log = list(episode.seen.values())
    promises = episode.load.acknowledged
    stored = await episode.database.snapshot()
    episode.violations += judge(old_log, stored, ends, promises).differences
    episode.seen = {
        (record.partition, record.offset - _BEFORE): record._replace(offset=record.offset - _BEFORE)
        for record in old_log
    }
    episode.load.forget()
    episode.audited = False


async def accept(episode: Episode) -> None:
    """Show the differences, then accept the log, as an operator would."""
    code, output = await episode.command("topic", "accept")
    if code != 1:
        episode.violations.append(f"topic accept: exit code {code}: {output}")
    code, output = await episode.command("topic", "accept", "--yes")
    if code != 0:
        episode.violations.append(f"topic accept --yes: exit code {code}: {output}")
    episode.healed()


async def until_halted(episode: Episode, partitions: set[int]) -> None:
    async def halted() -> bool:
        return partitions <= await halted_partitions(episode.consumers)

    try:
        await episode.until(halted, _HALT_LIMIT, "halted")
    except NoFaultError:
        found = await halted_partitions(episode.consumers)
        episode.violations.append(
            f"partitions {sorted(partitions)} lost records, but halted are {sorted(found)}"
        )


async def halted_partitions(consumers: list[Consumer]) -> set[int]:
    found = set()
    for consumer in consumers:
        found |= {int(number) for number in _HALTED.findall(await consumer.scrape("/metrics"))}
    return found


async def _partitions_grow(episode: Episode) -> None:
    await episode.topic.grow(_GROWN)

    async def used() -> bool:
        ends = await episode.topic.ends()
        return len(ends) == _GROWN and sum(end > 0 for end in ends.values()) > PARTITIONS

    await episode.until(used, 30, "a new partition has records")


def needs_accept(source: Source) -> str | None:
    commands = (source.path / "execution_events/cli").rglob("topic.py")
    if any('"accept"' in module.read_text() for module in commands):
        return None
    return "this source has no `topic accept`"


ROWS = (
    Row(
        "retention",
        "Retention removes stored records; rebalance while PostgreSQL is down",
        3,
        _retention,
        alone=True,
    ),
    Row(
        "log-deleted",
        "DeleteRecords past the stored offset",
        3,
        _records_deleted,
        missing=needs_accept,
    ),
    Row("topic-recreated", "Topic re-created", 3, _topic_recreated, missing=needs_accept),
    Row("partitions-grow", "Topic grows from 6 to 12 partitions", 3, _partitions_grow),
)
