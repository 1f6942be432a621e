"""Three brokers: the controller or the group coordinator fails, and the leaders stay."""

import asyncio
import sys
import time
from functools import partial

from tests.faults.consumers import Consumer
from tests.faults.episode import SESSION_TIMEOUT, Episode, NoFaultError, Row, Server
from tests.faults.pace import Pace
from tests.faults.requests import local_ports
from tests.faults.source import Source

_STALL_LIMIT = 10
"""Seconds for which a partition with a leader may stall."""
_TAKEN_LIMIT = SESSION_TIMEOUT + 15
"""Seconds until the partitions of the isolated member must have another owner."""
_CUT_OFF = 25
"""Seconds, many batches longer than the isolated member's session."""
_ELECTION_LIMIT = 30  # seconds
_DOWN = (6.0, 12.0)  # seconds


async def _controller_failover(episode: Episode) -> None:
    """Kill the active controller while a member joins the group."""
    epoch, node = episode.brokers.controller()
    leaders = await episode.topic.leaders()
    elsewhere = [partition for partition, leader in leaders.items() if leader != node]
    coordinator = await episode.topic.coordinator(episode.group)
    episode.evidence["killed"] = f"node {node}, controller" + (
        ", coordinator" if coordinator == node else ""
    )
    killed = episode.brokers.by_id(node)
    third = episode.new_consumer()
    async with Pace(episode.database, lambda: episode.load.acknowledged) as pace:
        began = time.monotonic()
        await asyncio.gather(killed.kill(), third.start())

        async def elected() -> bool:
            return episode.brokers.controller()[0] > epoch

        await episode.until(elected, _ELECTION_LIMIT, "another controller is elected")
        await asyncio.sleep(episode.rng.uniform(*_DOWN))
        await episode.until_moving()
        episode.evidence["down"] = round(time.monotonic() - began, 1)
        _require_pace(episode, pace, elsewhere)
        await killed.start()
        await killed.until_ready()
    episode.healed()
    await episode.until_joined()
    if code := await third.stop():
        episode.violations.append(f"{third.name}: exit code {code} after SIGTERM")
    episode.consumers.remove(third)


async def _no_coordinator(episode: Episode) -> None:
    """Cut one member off from the coordinator, while it can still fetch from the leaders."""
    victim = episode.rng.choice(episode.consumers)
    permanent = episode.rng.random() < 0.5
    node = await episode.topic.coordinator(episode.group)
    partitions = list(await episode.topic.leaders())
    proxy = episode.brokers.by_id(node).proxy
    episode.evidence["cut off"] = f"{victim.name} from node {node}" + (
        ", permanently" if permanent else ""
    )
    async with Pace(episode.database, lambda: episode.load.acknowledged) as pace:
        async with proxy.no_coordinator(partial(_is_of, victim), permanent=permanent) as cutoff:
            began = time.monotonic()

            async def taken() -> bool:
                return len(await episode.topic.members(episode.group)) == 1

            try:
                await episode.until(taken, _TAKEN_LIMIT, "taken over")
                episode.evidence["taken over after"] = round(time.monotonic() - began, 1)
            except NoFaultError:
                episode.violations.append(
                    f"the partitions were not taken over within {_TAKEN_LIMIT} s"
                )
            await asyncio.sleep(max(0.0, _CUT_OFF - (time.monotonic() - began)))
            if not cutoff.cut:
                raise NoFaultError("no connection to the coordinator was cut off")
        _require_pace(episode, pace, partitions)
    refused = sum([await consumer.fenced() for consumer in episode.consumers])
    episode.evidence["outcome"] = f"{'some' if refused else 'no'} batches were refused"


def _is_of(consumer: Consumer, port: int) -> bool:
    return consumer.pid is not None and port in local_ports(consumer.pid)


def _require_pace(episode: Episode, pace: Pace, partitions: list[int]) -> None:
    episode.evidence["stood still"] = stalls = pace.stalls()
    episode.violations += [
        f"partition {partition} stalled for {stalls[partition]} s"
        for partition in partitions
        if stalls.get(partition, 0) > _STALL_LIMIT
    ]


def _needs_proc(source: Source) -> str | None:
    return None if sys.platform == "linux" else "a process's connections are listed on Linux only"


ROWS_OF_THREE = (
    Row(
        "three-controller",
        "3 brokers: SIGKILL the active controller while a consumer joins",
        10,
        _controller_failover,
        brokers=3,
        is_long=True,
        alone=True,
    ),
    Row(
        "three-no-coordinator",
        "3 brokers: one consumer cut off from only the coordinator for 25 s",
        10,
        _no_coordinator,
        brokers=3,
        is_long=True,
        proxied=Server.KAFKA,
        alone=True,
        missing=_needs_proc,
    ),
)
