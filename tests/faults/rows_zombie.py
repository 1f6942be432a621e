"""A consumer that stands still until its partitions are another's, and then goes on."""

import asyncio
import random
import signal

from tests.faults.consumers import Consumer
from tests.faults.episode import PARTITIONS, SESSION_TIMEOUT, Episode, NoFaultError, Row
from tests.faults.rows_consumer import POINT_LIMIT

_TAKEN_LIMIT = SESSION_TIMEOUT + 20
"""Seconds in which the other must have all partitions."""
_REFUSED_LIMIT = 5
"""Seconds in which a late batch is refused, once both consumers run."""
_ATTEMPTS = 3
_BEFORE_OFFSETS = ("fetched", "begun")
"""Points with a batch in hand and no lock: the other overtakes it, and the zombie is refused."""
_OFFSETS_LOCKED = ("offsets_set", "upserted")
"""Points with the offsets moved and not committed: the other waits until the zombie commits, which
moves the offsets under their new owner, and that one's batch is refused. Sooner than a minute:
then PostgreSQL would end the zombie's session."""
# After the COMMIT is sent there is no batch to refuse.


async def _at_random(episode: Episode) -> None:
    victim, other = episode.consumers
    await asyncio.sleep(episode.rng.uniform(0, 1))
    before = await victim.fenced()
    victim.signal(signal.SIGSTOP)
    if not await _refuses(episode, victim, other, before):
        episode.evidence["outcome"] = "the zombie had no batch in hand"


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
            # It had no batch in hand at that moment.
            await victim.stop()
            point = _choose(episode.rng)
            episode.evidence["fail point"] = point
            await victim.start(point)
    # A product that refuses nothing ends here as well, and the oracle tells them apart.
    episode.proves_nothing = "no batch came late"


async def _refuses(
    episode: Episode, victim: Consumer, other: Consumer, refused_before: int = 0
) -> bool:
    """Wake the victim when its partitions are another's; whether a batch was too late then."""
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
    """Return once the other consumer alone is the group and has stored of each partition.

    Or would store, and waits for a lock that the zombie holds: then it returns True.
    """
    locked = False
    # Once more: the group may have changed while the offsets of the first time were looked at.
    for _ in range(2):
        stood = await episode.database.progress() or {}

        async def overtaken(stood: dict[int, int] = stood) -> bool:
            nonlocal locked
            if len(await episode.topic.members(episode.group)) != 1:
                return False
            locked = await episode.database.writers_wait()
            progress = await episode.database.progress() or {}
            return locked or (
                len(progress) == PARTITIONS
                and all(offset > stood.get(partition, 0) for partition, offset in progress.items())
            )

        await episode.until(overtaken, _TAKEN_LIMIT, "the other has stored of each partition")
    return locked


def _choose(rng: random.Random) -> str:
    return f"{rng.choice(_BEFORE_OFFSETS + _OFFSETS_LOCKED)}:{rng.randint(3, 20)}:stop"


ROWS = (
    Row("zombie", "SIGSTOP until all partitions are another's, at a random moment", 10, _at_random),
    Row(
        "zombie-at-point",
        "SIGSTOP until all partitions are another's, with a batch in hand",
        10,
        _at_point,
        first_fail_point=_choose,
    ),
)
