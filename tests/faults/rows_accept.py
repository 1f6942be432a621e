"""An accepted log beside a consumer that still holds a batch of the log before it."""

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
"""The number of the author of what the row itself produces."""
_HELD = 3
"""Records of the batch that the frozen consumer holds."""
_TAKEN_LIMIT = SESSION_TIMEOUT + 20
"""Seconds in which the partitions of a frozen consumer are another's."""
_STORED_LIMIT = 30  # seconds
_DECIDED_LIMIT = 10
"""Seconds in which the late batch is stored or refused, once its consumer goes on."""
_JOIN_LIMIT = 40  # seconds


async def _accepted_beside_frozen(episode: Episode) -> None:
    """The stored offset is again the one that the late batch expects, and of another log."""
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
        raise NoFaultError(f"partition {partition} does not stand at {expected}")

    victim.signal(signal.SIGCONT)
    episode.healed()
    await _until_decided(episode, victim, partition, expected)
    # What comes next in the new log, in every partition.
    episode.acknowledged += await _produce(
        episode, Author(episode.seed, _AUTHOR + 2), list(range(PARTITIONS)) * 10
    )


async def _freeze(episode: Episode, victim: Consumer) -> tuple[int, int]:
    """Give records to one partition after another until the victim stops with those of one.

    Its partition, and the offset that its batch begins at.
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

        await episode.until(met, _STORED_LIMIT, f"partition {partition} is stored, or held")
        if victim.is_stopped():
            return partition, before[partition]
    raise NoFaultError("the victim has stored nothing")


async def _until_decided(episode: Episode, victim: Consumer, partition: int, expected: int) -> None:
    async def decided() -> bool:
        progress = await episode.database.progress() or {}
        return progress.get(partition) != expected or await victim.fenced() > 0

    await episode.until(decided, _DECIDED_LIMIT, "the late batch is stored or refused")
    stands = (await episode.database.progress() or {}).get(partition)
    if stands != expected:
        episode.violations.append(
            f"partition {partition} went from {expected} to {stands} by a batch of the old log"
        )


async def _produce(
    episode: Episode, author: Author, partitions: Iterable[int]
) -> list[Acknowledged]:
    """Produce one record without source to each of `partitions`, in order."""
    sent = []
    async with AIOKafkaProducer(
        bootstrap_servers=episode.topic.bootstrap_servers, acks="all"
    ) as producer:
        for partition in partitions:
            message = author.next(with_source=0)
            # One request each: the offsets of a partition are in the order of its records.
            record = await producer.send_and_wait(
                episode.topic.name, message.value, message.key, partition=partition
            )
            sent.append(Acknowledged((record.partition, record.offset)))
    return sent


ROWS = (
    Row(
        "accept-frozen",
        "`topic accept` beside a consumer that is frozen with a batch of the old log",
        10,
        _accepted_beside_frozen,
        consumers=1,
        missing=needs_accept,
    ),
)
