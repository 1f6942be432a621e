"""Faults of the consumers' processes."""

import asyncio
import random
import signal
from collections.abc import Callable

from tests.faults.consumers import FAIL_POINT, KILLED
from tests.faults.episode import SESSION_TIMEOUT, Episode, NoFaultError, Row
from tests.faults.source import Source

POINTS = ("fetched", "begun", "offsets_set", "upserted", "commit_sent", "committed", "assigned")
_POINT_LIMIT = 60
"""Seconds until a consumer must have reached its fail point."""


def _needs_fail_points(source: Source) -> str | None:
    return None if source.mentions(FAIL_POINT) else "the consumer has no fail points yet"


def _kill_at(point: str) -> Callable[[random.Random], str]:
    def choose(rng: random.Random) -> str:
        # A partition is assigned once or twice in an episode, a batch is stored many times.
        return f"{point}:{1 if point == 'assigned' else rng.randint(1, 20)}:kill"

    return choose


async def _killed_at_its_point(episode: Episode) -> None:
    victim = episode.consumers[0]
    try:
        async with asyncio.timeout(_POINT_LIMIT):
            await victim.until_ended(1)
    except TimeoutError:
        raise NoFaultError("the fail point was not reached") from None
    if victim.exits[0] != KILLED:
        raise NoFaultError(f"the consumer ended with {victim.exits[0]}")
    await victim.until_alive(2)
    episode.healed()
    await asyncio.sleep(1)


async def _kill_at_random(episode: Episode) -> None:
    victim = episode.rng.choice(episode.consumers)
    await asyncio.sleep(episode.rng.uniform(0, 1.5))
    victim.signal(signal.SIGKILL)
    await victim.until_alive(2)
    if victim.exits != [KILLED]:
        raise NoFaultError(f"the consumer ended with {victim.exits}")


async def _zombie(episode: Episode) -> None:
    victim, other = episode.consumers
    if episode.row.first_fail_point is not None:

        async def stopped() -> bool:
            return victim.is_stopped()

        await episode.until(stopped, _POINT_LIMIT, "the fail point is reached")
    else:
        await asyncio.sleep(episode.rng.uniform(0, 1))
        victim.signal(signal.SIGSTOP)
    limit = SESSION_TIMEOUT if episode.has_time_limits(episode.source) else 10
    await asyncio.sleep(limit + episode.rng.uniform(1, 4))
    victim.signal(signal.SIGCONT)
    episode.healed()
    if victim.exits or other.exits:
        raise NoFaultError("a consumer ended")


def _zombie_point(rng: random.Random) -> str:
    # Not while it holds rows' locks, or there is nothing that the other could overtake.
    return f"{rng.choice(('fetched', 'fetched', 'begun', 'committed'))}:{rng.randint(3, 20)}:stop"


async def _scale(episode: Episode) -> None:
    [first] = episode.consumers
    joined = [episode.new_consumer() for _ in range(2)]
    for consumer in joined:
        await consumer.start()
        await asyncio.sleep(episode.rng.uniform(0.5, 2))
    await episode.until_joined()
    await episode.until_moving()
    # Rolling: one after another, and the first is the last to go and comes back.
    for consumer in (*joined, first):
        if code := await consumer.stop():
            episode.violations.append(f"{consumer.name}: SIGTERM ended in exit code {code}")
        await asyncio.sleep(episode.rng.uniform(0, 1))
    await first.start()
    for consumer in joined:
        episode.consumers.remove(consumer)


ROWS = (
    *(
        Row(
            f"kill-{point.replace('_', '-')}",
            f"SIGKILL a consumer at {point.replace('_', ' ')}",
            15,
            _killed_at_its_point,
            first_fail_point=_kill_at(point),
            missing=_needs_fail_points,
        )
        for point in POINTS
    ),
    Row("kill-random", "SIGKILL a consumer at a random moment", 10, _kill_at_random),
    Row("zombie", "SIGSTOP past the session time-out at a random moment", 10, _zombie),
    Row(
        "zombie-at-point",
        "SIGSTOP past the session time-out between fetch and commit",
        10,
        _zombie,
        first_fail_point=_zombie_point,
        missing=_needs_fail_points,
    ),
    Row("scale", "Scale 1-3-1, rolling SIGTERM", 20, _scale, consumers=1),
)
