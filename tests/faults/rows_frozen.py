"""A consumer frozen or lost in the middle of a transaction: its partitions must continue."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tests.faults.consumers import Consumer
from tests.faults.episode import PARTITIONS, SESSION_TIMEOUT, Episode, NoFaultError, Row
from tests.faults.pace import check_others, pace_of
from tests.faults.protocol import Moment
from tests.faults.proxy import Proxy

_TAKEN_LIMIT = SESSION_TIMEOUT + 15
"""Seconds until records written after the freeze must be stored in each partition."""
_FROZEN = 66
"""Seconds, longer than every timeout of a session."""
_ATTEMPTS = 20
_MOMENT_LIMIT = 20
"""Seconds until a session must reach a moment."""
_WAITS_LIMIT = 0.5
"""Seconds until its server must be waiting."""


async def _frozen(episode: Episode) -> None:
    victim, proxy = await _victim(episode)
    async with _freeze(episode, victim, proxy) as theirs:
        await _taken_over(episode, theirs, time.monotonic() + _FROZEN)
        victim.signal(signal.SIGCONT)
    episode.healed()
    await asyncio.sleep(episode.rng.uniform(0, 2))


async def _host_gone(episode: Episode) -> None:
    victim, proxy = await _victim(episode)
    async with _freeze(episode, victim, proxy) as theirs:
        proxy.lose_client()
        await victim.close()
        await _taken_over(episode, theirs, 0)


async def _victim(episode: Episode) -> tuple[Consumer, Proxy]:
    """Start a second consumer that reaches PostgreSQL through a proxy of its own."""
    proxy = Proxy(episode.cluster.postgres.port, sessions=True)
    await episode.stack.enter_async_context(proxy)
    victim = episode.new_consumer(proxy.port)
    await victim.start()
    await episode.until_joined()

    async def shared() -> bool:
        seeded = [await consumer.seeded() for consumer in episode.consumers]
        return all(seeded) and sum(map(len, seeded)) == PARTITIONS

    await episode.until(shared, 30, "both consumers store partitions")
    return victim, proxy


@asynccontextmanager
async def _freeze(episode: Episode, victim: Consumer, proxy: Proxy) -> AsyncIterator[set[int]]:
    """SIGSTOP the victim while its session locks stored offsets; yield the other's partitions.

    Messages that the victim had already sent arrive at the end.
    """
    # Seeds alternate between the moments.
    moment = list(Moment)[episode.seed % len(Moment)]
    episode.evidence["frozen"] = moment.value
    [other, _] = episode.consumers
    theirs = await other.seeded()
    over = True
    for attempt in range(1, _ATTEMPTS + 1):
        episode.evidence["attempts"] = attempt
        if moment is Moment.PARSED and over:
            # A statement is parsed only once per connection.
            proxy.cut()
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(_MOMENT_LIMIT):
                    port = await stack.enter_async_context(proxy.held_at(moment))
            except TimeoutError:
                over = True
                continue
            over = False
            if await _holds_offsets(episode, port):
                victim.signal(signal.SIGSTOP)

                async def stopped() -> bool:
                    return victim.is_stopped()

                await episode.until(stopped, 5, "the consumer is stopped")
                yield theirs
                return
    raise NoFaultError(f"no transaction was frozen {moment.value}")


async def _holds_offsets(episode: Episode, port: int) -> bool:
    async def holds() -> bool:
        return await episode.database.holds_offsets(port)

    return await episode.seconds_until(holds, _WAITS_LIMIT) is not None


async def _taken_over(episode: Episode, theirs: set[int], until: float) -> None:
    """Check that the successor stores new records of each partition in time; end at `until`."""
    started = time.monotonic()
    async with pace_of(episode) as pace:
        ends = await episode.topic.ends()
        behind = dict(ends)

        async def stored() -> bool:
            progress = await episode.database.progress() or {}
            for partition in [p for p in behind if progress.get(p, 0) > ends[p]]:
                del behind[partition]
            return not behind

        left = _TAKEN_LIMIT - (time.monotonic() - started)
        if await episode.seconds_until(stored, left) is None:
            episode.violations.append(
                f"nothing new was stored of partitions {sorted(behind)} within {_TAKEN_LIMIT} s"
            )
        else:
            episode.evidence["taken over after"] = round(time.monotonic() - started, 1)
        await asyncio.sleep(max(0, until - time.monotonic()))
        check_others(episode, pace, theirs)


ROWS = (
    Row(
        "frozen-transaction",
        "SIGSTOP for 66 s inside COPY, between Parse and Bind, or between two statements",
        10,
        _frozen,
        consumers=1,
        is_long=True,
    ),
    Row(
        "host-gone",
        "A consumer's host is lost at one of these points; its connections stay open",
        10,
        _host_gone,
        consumers=1,
    ),
)
