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
_FINAL_SECONDS = 0.02
"""Seconds before a consumer's end in which all it sends is lost; far shorter than any timeout."""
_SESSION_ENDS = 0.3
"""Seconds until PostgreSQL has processed a lost client's last requests and ended its session."""


def _kill_at(point: str) -> Callable[[random.Random], str]:
    def choose(rng: random.Random) -> str:
        # Partitions are assigned once or twice in an episode, batches stored many times.
        return f"{point}:{1 if point == 'assigned' else rng.randint(1, 20)}:kill"

    return choose


def kill_at_any(rng: random.Random) -> str:
    """Choose any point except `assigned`, which comes before the first batch."""
    return _kill_at(rng.choice([point for point in POINTS if point != "assigned"]))(rng)


async def killed_at_its_point(episode: Episode) -> None:
    """Return once the first consumer was killed at its fail point and runs again."""
    await _until_killed(episode)
    await _back(episode)


async def _killed_at_commit(episode: Episode) -> None:
    """Kill the consumer right after it sent COMMIT, which then arrives or is lost."""
    point = str(episode.evidence["fail point"])
    async with AsyncExitStack() as stack:
        if lost := episode.rng.random() < 0.5:
            proxy = episode.cluster.postgres_proxy
            await stack.enter_async_context(proxy.losing_final_bytes(_FINAL_SECONDS))
        await _until_killed(episode)
        await asyncio.sleep(_SESSION_ENDS)
    batches = await episode.database.batches_of_the_dead()
    stored = batches == int(point.split(":")[1])
    episode.evidence["outcome"] = f"the batch {'was stored' if stored else 'was lost'}"
    if stored == lost:
        episode.inconclusive = f"the COMMIT {'arrived' if lost else 'did not arrive'}"
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
    # A rolling stop; the first consumer stops last and is started again.
    for consumer in (*joined, first):
        if code := await consumer.stop():
            episode.violations.append(f"{consumer.name}: exit code {code} after SIGTERM")
        await asyncio.sleep(episode.rng.uniform(0, 1))
    await first.start()
    for consumer in joined:
        episode.consumers.remove(consumer)


ROWS = (
    *(
        Row(
            f"kill-{point.replace('_', '-')}",
            f"SIGKILL a consumer at fail point `{point}`",
            15,
            _killed_at_commit if point == "commit_sent" else killed_at_its_point,
            proxied=Server.POSTGRES if point == "commit_sent" else None,
            first_fail_point=_kill_at(point),
        )
        for point in POINTS
    ),
    Row("kill-random", "SIGKILL a consumer at a random moment", 10, _kill_at_random),
    Row(
        "scale",
        "Scale from 1 consumer to 3 and back, rolling SIGTERM",
        20,
        _scale,
        consumers=1,
    ),
)
