"""Faults of the consumers' processes."""

import asyncio
import random
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

from tests.faults.consumers import KILLED
from tests.faults.episode import Episode, NoFaultError, Row, Server
from tests.faults.failpoints import POINTS

POINT_LIMIT = 60
"""Seconds until a consumer must have reached its fail point."""
_LAST_WORDS = 0.02
"""Seconds before a consumer's death in which what it sends is lost; far less than a time limit."""
_SESSION_ENDS = 0.3
"""Seconds in which PostgreSQL has noticed that a client has gone, and done what it had asked."""


def _kill_at(point: str) -> Callable[[random.Random], str]:
    def choose(rng: random.Random) -> str:
        # A partition is assigned once or twice in an episode, a batch is stored many times.
        return f"{point}:{1 if point == 'assigned' else rng.randint(1, 20)}:kill"

    return choose


def kill_at_any(rng: random.Random) -> str:
    """Any of the points, but the one that is reached before there is a batch."""
    return _kill_at(rng.choice([point for point in POINTS if point != "assigned"]))(rng)


async def killed_at_its_point(episode: Episode) -> None:
    """Return when the first consumer has ended at its fail point and runs again."""
    await _until_killed(episode)
    await _back(episode)


async def _killed_at_commit(episode: Episode) -> None:
    """The COMMIT of a process that dies then either arrives or does not."""
    point = str(episode.evidence["fail point"])
    async with AsyncExitStack() as stack:
        if lost := episode.rng.random() < 0.5:
            proxy = episode.cluster.postgres_proxy
            await stack.enter_async_context(proxy.losing_last_words(_LAST_WORDS))
        await _until_killed(episode)
        await asyncio.sleep(_SESSION_ENDS)
    batches = await episode.database.batches_of_the_dead()
    stored = batches == int(point.split(":")[1])
    episode.evidence["outcome"] = f"the batch {'was stored' if stored else 'was lost'}"
    if stored == lost:
        episode.proves_nothing = f"the COMMIT {'arrived' if lost else 'did not arrive'}"
    await _back(episode)


async def _until_killed(episode: Episode) -> None:
    victim = episode.consumers[0]
    try:
        async with asyncio.timeout(POINT_LIMIT):
            await victim.until_ended(1)
    except TimeoutError:
        raise NoFaultError("the fail point was not reached") from None
    if victim.exits[0] != KILLED:
        raise NoFaultError(f"the consumer ended with {victim.exits[0]}")


async def _back(episode: Episode) -> None:
    await episode.consumers[0].until_alive(2)
    episode.healed()
    await asyncio.sleep(1)


async def _kill_at_random(episode: Episode) -> None:
    victim = episode.rng.choice(episode.consumers)
    await asyncio.sleep(episode.rng.uniform(0, 1.5))
    victim.signal(signal.SIGKILL)
    await victim.until_alive(2)
    if victim.exits != [KILLED]:
        raise NoFaultError(f"the consumer ended with {victim.exits}")


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
            _killed_at_commit if point == "commit_sent" else killed_at_its_point,
            proxied=Server.POSTGRES if point == "commit_sent" else None,
            first_fail_point=_kill_at(point),
        )
        for point in POINTS
    ),
    Row("kill-random", "SIGKILL a consumer at a random moment", 10, _kill_at_random),
    Row("scale", "Scale 1-3-1, rolling SIGTERM", 20, _scale, consumers=1),
)
