"""A consumer that is stopped until its partitions have another owner, and then continues."""

import asyncio
import random
import signal

from tests.faults.consumers import Consumer
from tests.faults.episode import PARTITIONS, SESSION_TIMEOUT, Episode, NoFaultError, Row
from tests.faults.rows_consumer import POINT_LIMIT

_TAKEN_LIMIT = SESSION_TIMEOUT + 20
"""Seconds until the other consumer must own all partitions."""
_REFUSED_LIMIT = 5
"""Seconds until a late batch must be refused, once both consumers run."""
_ATTEMPTS = 8
_BEFORE_OFFSETS = ("fetched", "begun")
"""Points with a batch and no lock: the successor overtakes, and the zombie's batch is refused."""
_OFFSETS_LOCKED = ("offsets_set", "upserted")
"""Points with moved, uncommitted offsets: the successor waits for the zombie's COMMIT, which moves
the offsets that the successor expects, and the successor's batch is refused. The zombie must
continue within a minute, or PostgreSQL ends its session."""
# Once COMMIT is sent, no batch is left to refuse.


async def _at_random(episode: Episode) -> None:
    victim, other = episode.consumers
    await asyncio.sleep(episode.rng.uniform(0, 1))
    before = await victim.fenced()
    victim.signal(signal.SIGSTOP)
    if not await _refuses(episode, victim, other, before):
        episode.evidence["outcome"] = "the zombie had no batch"


async def _at_point(episode: Episode) -> None:
    victim, other = episode.consumers

    async def stopped() -> bool:
        return victim.is_stopped()

    for attempt in range(1, _ATTEMPTS + 1):
        episode.evidence["attempts"] = attempt
        await episode.until(stopped, POINT_LIMIT, "the fail point is reached")
        if await _refuses(episode, victim, other):
            return
        if attempt < _ATTEMPTS:
            # The victim had no batch at that point.
            await victim.stop()
            point = _choose(episode.rng)
            episode.evidence["fail point"] = point
            await victim.start(point)
    # A product that refuses no batch ends here too; the oracle tells them apart.
    episode.inconclusive = "no batch was late"


async def _refuses(
    episode: Episode, victim: Consumer, other: Consumer, refused_before: int = 0
) -> bool:
    """Continue the victim once the other owns all partitions; return True if a batch is refused."""
    locked = await _until_overtaken(episode)
    refused_of_other = await other.fenced()
    await asyncio.sleep(episode.rng.uniform(0, 1))
    victim.signal(signal.SIGCONT)
    episode.healed()
    late, whose = (other, "its successor's") if locked else (victim, "the zombie's")
    known = refused_of_other if locked else refused_before

    async def refused() -> bool:
        return await late.fenced() > known

    try:
        await episode.until(refused, _REFUSED_LIMIT, "a batch is refused")
    except NoFaultError:
        return False
    episode.evidence["outcome"] = f"{whose} batch was refused"
    return True


async def _until_overtaken(episode: Episode) -> bool:
    """Return once the other consumer is the only member and has stored records of each partition.

    Return True if it waits instead for a lock that the zombie holds.
    """
    locked = False
    # Twice: the group may have changed after the first offsets were read.
    for _ in range(2):
        before = await episode.database.progress() or {}

        async def overtaken(before: dict[int, int] = before) -> bool:
            nonlocal locked
            if len(await episode.topic.members(episode.group)) != 1:
                return False
            locked = await episode.database.writers_wait()
            progress = await episode.database.progress() or {}
            return locked or (
                len(progress) == PARTITIONS
                and all(offset > before.get(partition, 0) for partition, offset in progress.items())
            )

        await episode.until(overtaken, _TAKEN_LIMIT, "the other consumer stores each partition")
    return locked


def _choose(rng: random.Random) -> str:
    return f"{rng.choice(_BEFORE_OFFSETS + _OFFSETS_LOCKED)}:{rng.randint(3, 20)}:stop"


ROWS = (
    Row(
        "zombie",
        "SIGSTOP a consumer at a random moment, until the other owns all partitions",
        10,
        _at_random,
    ),
    Row(
        "zombie-at-point",
        "SIGSTOP a consumer that holds a batch, until the other owns all partitions",
        10,
        _at_point,
        first_fail_point=_choose,
    ),
)
