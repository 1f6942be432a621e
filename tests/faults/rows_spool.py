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
"""Events that the worker must have published before the fault."""
_LIMIT = 30  # seconds
_SLOW = 5
"""Seconds per fsync."""
_SLOW_SYNCS = 2
"""Fsyncs that must publish events meanwhile."""
_SLOW_LIMIT = 25
"""Seconds for these: every other fsync may cover only acknowledgements."""
_HUNG = 10  # seconds
_SETTLED = 0.5
"""Seconds until every event synced before the fault is in the journal."""
_BEAT_LIMIT = 2.5
"""Seconds for which the worker's event loop may be blocked, less than an fsync."""
_RESUME_LIMIT = 10
"""Seconds until the worker must publish again on a repaired disk."""


async def _slow(episode: Episode) -> None:
    disk, worker = await _prepared(episode)
    async with worker.running() as process:
        await _until_published(episode, worker, _EVENTS)
        disk.slow(_SLOW)
        await asyncio.sleep(_SETTLED)
        began = time.monotonic()
        syncs: list[float] = []
        known = len(worker.journal().durable)
        while len(syncs) < _SLOW_SYNCS and time.monotonic() - began < _SLOW_LIMIT:
            # One fsync releases all the events that wait for it.
            if (durable := len(worker.journal().durable)) > known:
                syncs.append(round(time.monotonic() - began, 1))
                known = durable
            await asyncio.sleep(_SLOW / 10)
        episode.evidence["published after"] = syncs
        # The first fsync may have begun before the fault.
        if len(syncs) < _SLOW_SYNCS or syncs[-1] < (_SLOW_SYNCS - 1) * _SLOW - _SETTLED:
            episode.violations.append(
                f"events were published after {syncs} s, although each fsync takes {_SLOW} s"
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
            episode.violations.append(f"{early} events were published without an fsync")
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
    """Kill the worker during the fault, or once it publishes again on the repaired disk."""
    if episode.rng.random() < 0.5:
        episode.evidence["outcome"] = "killed during the fault"
        kill(signal.SIGKILL)
        disk.repair()
        return
    episode.evidence["outcome"] = "killed after the repair"
    known = len(worker.journal().durable)
    disk.repair()

    async def resumed() -> bool:
        return len(worker.journal().durable) > known + _EVENTS

    await _require(episode, resumed, _RESUME_LIMIT + _SLOW, "the worker publishes again")
    kill(signal.SIGKILL)


def _require_beats(episode: Episode, worker: WorkerProcess, began: float) -> None:
    """Check that the worker's event loop was not blocked since `began`."""
    beats = [
        began,
        *(beat for line in worker.beats.read_text().split()[:-1] if (beat := float(line)) > began),
        time.monotonic(),
    ]
    pause = max(later - earlier for earlier, later in pairwise(beats))
    episode.evidence["longest pause"] = round(pause, 2)
    if pause > _BEAT_LIMIT:
        episode.violations.append(f"the worker's event loop was blocked for {pause:.1f} s")


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
    Row(
        "spool-slow",
        "Each fsync of a spool takes 5 s; SIGKILL the worker",
        10,
        _slow,
        missing=_missing,
    ),
    Row(
        "spool-hung",
        "A spool's disk hangs for 10 s; SIGKILL the worker",
        10,
        _hung,
        missing=_missing,
    ),
)
