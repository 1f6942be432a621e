"""`topic accept` while a consumer still holds a batch of the old log."""

import asyncio
import signal
from collections.abc import Iterable

from aiokafka import AIOKafkaProducer

from tests.faults.author import Author
from tests.faults.consumers import Consumer
from tests.faults.episode import PARTITIONS, SESSION_TIMEOUT, Episode, NoFaultError, Row
from tests.faults.oracle import Acknowledged
from tests.faults.rows_log import judge_log_before, needs_accept

_AUTHOR = 90
"""Number of the first author of the row's own records."""
_HELD = 3
"""Records in the frozen consumer's batch."""
_TAKEN_LIMIT = SESSION_TIMEOUT + 20
"""Seconds until the partitions of a frozen consumer must have another owner."""
_STORED_LIMIT = 30  # seconds
_DECIDED_LIMIT = 10
"""Seconds until the late batch must be stored or refused, once its consumer continues."""
_JOIN_LIMIT = 40  # seconds


async def _accepted_beside_frozen(episode: Episode) -> None:
    """Give the late batch the stored offset that it expects, but of another log."""
    await episode.load.stop()
    await episode.until_caught_up(_STORED_LIMIT)
    [other] = episode.consumers
    victim = episode.new_consumer()
    await victim.start("begun:1:stop")
    partition, expected = await _freeze(episode, victim)
    episode.evidence["late batch"] = f"partition {partition} from {expected}"

    old = await episode.until_caught_up(_TAKEN_LIMIT)
    await other.stop()
    await judge_log_before(episode, old)
    await episode.topic.delete()
    await asyncio.sleep(1)
    await episode.topic.create(PARTITIONS)
    code, output = await episode.command("topic", "accept", "--yes")
    if code != 0:
        episode.violations.append(f"topic accept --yes: exit code {code}: {output}")
    episode.acknowledged = await _produce(
        episode, Author(episode.seed, _AUTHOR + 1), [partition] * expected
    )
    await other.start()
    await episode.until_caught_up(_JOIN_LIMIT)
    if (await episode.database.progress() or {})[partition] != expected:
        raise NoFaultError(f"the stored offset of partition {partition} is not {expected}")

    victim.signal(signal.SIGCONT)
    episode.healed()
    await _until_decided(episode, victim, partition, expected)
    # Further records of the new log, in every partition.
    episode.acknowledged += await _produce(
        episode, Author(episode.seed, _AUTHOR + 2), list(range(PARTITIONS)) * 10
    )


async def _freeze(episode: Episode, victim: Consumer) -> tuple[int, int]:
    """Produce to one partition after another until the victim stops with a batch of one.

    Return its partition and the batch's first offset.
    """

    async def joined() -> bool:
        return len(await episode.topic.members(episode.group)) == len(episode.consumers)

    await episode.until(joined, _JOIN_LIMIT, "the victim is a member")
    author = Author(episode.seed, _AUTHOR)
    for partition in range(PARTITIONS):
        before = await episode.topic.ends()
        await _produce(episode, author, [partition] * _HELD)

        async def met(partition: int = partition, end: int = before[partition]) -> bool:
            progress = await episode.database.progress() or {}
            return victim.is_stopped() or progress[partition] > end

        await episode.until(met, _STORED_LIMIT, f"records of partition {partition} are fetched")
        if victim.is_stopped():
            return partition, before[partition]
    raise NoFaultError("the victim has stored nothing")


async def _until_decided(episode: Episode, victim: Consumer, partition: int, expected: int) -> None:
    async def decided() -> bool:
        progress = await episode.database.progress() or {}
        return progress.get(partition) != expected or await victim.fenced() > 0

    await episode.until(decided, _DECIDED_LIMIT, "the late batch is stored or refused")
    stored = (await episode.database.progress() or {}).get(partition)
    if stored != expected:
        episode.violations.append(
            f"a batch of the old log moved partition {partition} from {expected} to {stored}"
        )


async def _produce(
    episode: Episode, author: Author, partitions: Iterable[int]
) -> list[Acknowledged]:
    """Produce one record without a source to each of `partitions`, in order."""
    sent = []
    async with AIOKafkaProducer(
        bootstrap_servers=episode.topic.bootstrap_servers, acks="all"
    ) as producer:
        for partition in partitions:
            message = author.next(with_source=0)
            # One request at a time keeps the order of the records in a partition.
            record = await producer.send_and_wait(
                episode.topic.name, message.value, message.key, partition=partition
            )
            sent.append(Acknowledged((record.partition, record.offset)))
    return sent


ROWS = (
    Row(
        "accept-frozen",
        "`topic accept` while a frozen consumer holds a batch of the old log",
        10,
        _accepted_beside_frozen,
        consumers=1,
        missing=needs_accept,
    ),
)
