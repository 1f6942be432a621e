"""The disk of a worker's spool, slow or hung."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise

from tests.faults import fsync
from tests.faults.episode import Episode, NoFaultError, Row
from tests.faults.fsync import ProcessDisk
from tests.faults.source import Source
from tests.faults.worker import WorkerProcess

_INTERVAL = 0.1
"""Seconds between two events of one of the worker's tasks."""
_EVENTS = 100
"""Events that the worker must have published before anything changes."""
_LIMIT = 30  # seconds
_SLOW = 5
"""Seconds that an fsync takes."""
_SLOW_TURNS = 2
"""Times that events must be published meanwhile, each after an fsync of its own."""
_SLOW_LIMIT = 25
"""Seconds for it: every other fsync may be one of acknowledgements alone."""
_HUNG = 10  # seconds
_SETTLED = 0.5
"""Seconds after which nothing is on its way that was synced before."""
_BEAT_LIMIT = 2.5
"""Seconds for which the worker's event loop may be busy; less than an fsync."""
_GOES_ON_LIMIT = 10
"""Seconds until the worker publishes again on a disk that is mended."""


async def _slow(episode: Episode) -> None:
    disk, worker = await _prepared(episode)
    async with worker.running() as process:
        await _until_published(episode, worker, _EVENTS)
        disk.slow(_SLOW)
        await asyncio.sleep(_SETTLED)
        began = time.monotonic()
        turns: list[float] = []
        known = len(worker.journal().durable)
        while len(turns) < _SLOW_TURNS and time.monotonic() - began < _SLOW_LIMIT:
            # All that wait for one fsync go on together.
            if (durable := len(worker.journal().durable)) > known:
                turns.append(round(time.monotonic() - began, 1))
                known = durable
            await asyncio.sleep(_SLOW / 10)
        episode.evidence["published after"] = turns
        # The first may have begun before.
        if len(turns) < _SLOW_TURNS or turns[-1] < (_SLOW_TURNS - 1) * _SLOW - _SETTLED:
            episode.violations.append(
                f"events were published after {turns} s, with {_SLOW} s for each fsync"
            )
        _require_beats(episode, worker, began)
        await _killed_or_mended(episode, disk, worker, process.kill)
        await process.wait()
    await _drain(episode, worker)


async def _hung(episode: Episode) -> None:
    disk, worker = await _prepared(episode)
    async with worker.running() as process:
        await _until_published(episode, worker, _EVENTS)
        disk.hang()
        await asyncio.sleep(_SETTLED)
        began = time.monotonic()
        known = worker.journal().durable
        await asyncio.sleep(_HUNG)
        if early := len(worker.journal().durable) - len(known):
            episode.violations.append(f"{early} events were published that are on no disk")
        if worker.journal().begun.keys() == known.keys():
            raise NoFaultError("no event waited for the disk")
        _require_beats(episode, worker, began)
        await _killed_or_mended(episode, disk, worker, process.kill)
        await process.wait()
    await _drain(episode, worker)


async def _prepared(episode: Episode) -> tuple[ProcessDisk, WorkerProcess]:
    disk = ProcessDisk(episode.directory)
    await disk.build()
    worker = WorkerProcess(
        episode.environment(), episode.directory, command=disk.command, interval=_INTERVAL
    )
    return disk, worker


async def _killed_or_mended(
    episode: Episode,
    disk: ProcessDisk,
    worker: WorkerProcess,
    kill: Callable[[signal.Signals], None],
) -> None:
    """Kill the worker while its disk is as it is, or when it has gone on with a mended one."""
    if episode.rng.random() < 0.5:
        episode.evidence["outcome"] = "killed in it"
        kill(signal.SIGKILL)
        disk.mend()
        return
    episode.evidence["outcome"] = "mended"
    known = len(worker.journal().durable)
    disk.mend()

    async def goes_on() -> bool:
        return len(worker.journal().durable) > known + _EVENTS

    await _require(episode, goes_on, _GOES_ON_LIMIT + _SLOW, "the worker publishes again")
    kill(signal.SIGKILL)


def _require_beats(episode: Episode, worker: WorkerProcess, began: float) -> None:
    """The worker's event loop went on since `began`, whatever its disk did."""
    beats = [
        began,
        *(beat for line in worker.beats.read_text().split()[:-1] if (beat := float(line)) > began),
        time.monotonic(),
    ]
    pause = max(later - earlier for earlier, later in pairwise(beats))
    episode.evidence["longest pause"] = round(pause, 2)
    if pause > _BEAT_LIMIT:
        episode.violations.append(f"the worker's event loop stood still for {pause:.1f} s")


async def _until_published(episode: Episode, worker: WorkerProcess, events: int) -> None:
    async def published() -> bool:
        return len(worker.journal().durable) >= events

    await episode.until(published, _LIMIT, f"{events} events are published")


async def _require(
    episode: Episode, condition: Callable[[], Awaitable[bool]], limit: float, what: str
) -> None:
    try:
        await episode.until(condition, limit, what)
    except NoFaultError as error:
        episode.violations.append(str(error))


async def _drain(episode: Episode, worker: WorkerProcess) -> None:
    episode.healed()
    code, output = await episode.command("spool", "drain", str(worker.spools))
    if code != 0:
        episode.violations.append(f"the spool was not drained: {output}")
    episode.published = worker.journal()


def _missing(source: Source) -> str | None:
    return fsync.missing()


ROWS = (
    Row("spool-slow", "fsync of a spool takes 5 s; SIGKILL", 10, _slow, missing=_missing),
    Row("spool-hung", "The disk of a spool hangs 10 s; SIGKILL", 10, _hung, missing=_missing),
)
