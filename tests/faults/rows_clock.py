"""A worker's clock that is wrong, or moves by weeks while the worker runs."""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta

from tests.faults import clock
from tests.faults.clock import ProcessClock
from tests.faults.episode import Episode, NoFaultError, Row, Server
from tests.faults.proxy import Direction
from tests.faults.source import Source
from tests.faults.worker import WorkerProcess
from tests.support.spooling_worker import Journal

_STAMPS = ("CreateTime", "LogAppendTime")
_SPOOLS = "urn:uuid:%"
"""Pattern of the sources of spools, which no other worker of the harness has."""
_AHEAD, _BEHIND = timedelta(hours=2), timedelta(days=-365)
_LATER = (timedelta(days=31), timedelta(days=61))
"""Beyond the time in which a record may be sent again; the second also beyond the time for which a
source's watermark is stored."""
_INTERVAL = 0.1
"""Seconds between two events of one of the worker's tasks: about 80 events/s in total."""
_EVENTS = 100
"""Events that the worker must have published before the fault."""
_WORKS_LIMIT = 30  # seconds
_SENT_LIMIT = 30
"""Seconds until everything must be sent once the clock is right; the worker retries every 5 s."""
_LOST_REPLIES = 1
"""Seconds in which records reach the log and their acknowledgements are lost."""
_NO_REPLY = 64
"""Seconds without a reply: after 60 the worker replaces its producer, and the new one does not know
which batches are in the log."""


async def _wrong(episode: Episode) -> None:
    shift = (_AHEAD, _BEHIND)[episode.seed // 2 % 2]
    stamp = await _stamp(episode)
    episode.evidence["clock"] = str(shift)
    false_clock = ProcessClock(episode.directory / "clock", shift)
    worker = WorkerProcess(
        episode.environment(), episode.directory, command=false_clock.command, interval=_INTERVAL
    )
    async with worker.running() as process:
        await _until_published(episode, worker, _EVENTS)
        if shift == _BEHIND or stamp == "LogAppendTime":
            await _require_sent(episode, worker, _EVENTS)
        else:
            # Kafka refuses timestamps more than an hour ahead.
            await _until_published(episode, worker, 2 * _EVENTS)
            if _sent(worker) > 0:
                raise NoFaultError("Kafka accepts records of this clock")
        false_clock.move(timedelta())
        await _require_sent(episode, worker, len(worker.journal().durable))
        process.kill(signal.SIGKILL)
        await process.wait()
    await _drain(episode, worker)


async def _later(episode: Episode) -> None:
    """Lose the replies to a batch of each partition, then let weeks pass.

    The clock starts weeks behind, so that it is right at the end.
    """
    later = _LATER[episode.seed // 2 % 2]
    await _stamp(episode)
    episode.evidence["later"] = f"{later.days} days"
    false_clock = ProcessClock(episode.directory / "clock", -later)
    servers = episode.brokers.proxied_servers
    worker = WorkerProcess(
        episode.environment() | {"EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS": servers},
        episode.directory,
        command=false_clock.command,
        interval=_INTERVAL,
    )
    await episode.load.stop()
    [broker] = episode.brokers.nodes
    async with worker.running() as process:
        await _until_published(episode, worker, _EVENTS)
        await _require_sent(episode, worker, _EVENTS)
        async with broker.proxy.black_hole(Direction.TO_CLIENT):
            began = time.monotonic()
            await asyncio.sleep(_LOST_REPLIES)
            old = worker.journal().begun
            # Until the producer has sent the last of them.
            await asyncio.sleep(_LOST_REPLIES)
            false_clock.move(timedelta())
            await episode.until_caught_up(_WORKS_LIMIT)
            await _forget_sources(episode, later)
            await asyncio.sleep(_NO_REPLY - (time.monotonic() - began))
        before = await episode.topic.ends()

        async def sends() -> bool:
            ends = await episode.topic.ends()
            return all(end > before[partition] for partition, end in ends.items())

        await episode.until(sends, _SENT_LIMIT, "the worker sends to each partition again")
        process.kill(signal.SIGKILL)
        await process.wait()
    if not await _drain(episode, worker):
        raise NoFaultError("no reply was lost")
    copies = await _copies(episode, old)
    if again := copies.total() - len(copies):
        episode.violations.append(f"{again} records were sent again after {later.days} days")


async def _copies(episode: Episode, names: Collection[str]) -> Counter[str]:
    """Return the number of records of each of `names` in the log."""
    bodies = [json.loads(record.value or b"0") for record in await episode.topic.records()]
    found = [body["metadata"]["name"] for body in bodies]
    return Counter(name for name in found if name in names)


async def _stamp(episode: Episode) -> str:
    stamp = _STAMPS[episode.seed % 2]
    episode.evidence["stamp"] = stamp
    await episode.topic.stamp_records(stamp)
    return stamp


async def _forget_sources(episode: Episode, later: timedelta) -> None:
    """Age the worker's watermarks by `later` too, and prune those that are too old."""
    aged = await episode.database.age_sources(_SPOOLS, later.total_seconds())
    owner = episode.database.owner_url(episode.cluster.postgres.port)
    code, output = await episode.command(
        *("prune", "--older-than", "9999d"), EXECUTION_EVENTS_DATABASE_URL=owner
    )
    if not aged or code:
        raise NoFaultError(f"{aged} watermarks aged; prune exited with {code}: {output}")
    await episode.database.omit_prune_from_audit()


async def _until_published(episode: Episode, worker: WorkerProcess, events: int) -> None:
    async def published() -> bool:
        return len(worker.journal().durable) >= events

    await episode.until(published, _WORKS_LIMIT, f"{events} events are published")


def _sent(worker: WorkerProcess) -> int:
    """Return the number of sent events; a held one counts, as it was attempted before."""
    return len(worker.journal().durable) - worker.left() - worker.refused()


async def _require_sent(episode: Episode, worker: WorkerProcess, events: int) -> None:
    async def sent() -> bool:
        return _sent(worker) >= events

    await _require(episode, sent, f"{events} events are sent")


async def _require(episode: Episode, condition: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        await episode.until(condition, _SENT_LIMIT, what)
    except NoFaultError as error:
        episode.violations.append(str(error))


async def _drain(episode: Episode, worker: WorkerProcess) -> int:
    """Drain the worker's spools and return the number of held events.

    Held events may be in the log or not; nothing else may remain in a spool.
    """
    episode.healed()
    directory = str(worker.spools)
    code, output = await episode.command("spool", "drain", directory)
    _, listed = await episode.command("spool", "list", "--json", directory)
    spools = [json.loads(line) for line in listed.splitlines() if line.startswith("{")]
    held = worker.held()
    episode.evidence["held"] = len(held)
    states = ("pending", "held", "refused")
    totals = {state: sum(spool[state] or 0 for spool in spools) for state in states}
    if totals != {"pending": 0, "held": len(held), "refused": 0} or code != bool(held):
        episode.violations.append(
            f"{len(held)} events are held; spool list has {totals};"
            f" spool drain: exit code {code}: {output}"
        )
    journal = worker.journal()
    episode.published = Journal(
        journal.begun,
        {name: count for name, count in journal.durable.items() if name not in held},
    )
    return len(held)


def _missing(source: Source) -> str | None:
    return clock.missing()


ROWS = (
    Row(
        "clock-wrong",
        "A worker's clock 2 h ahead or a year behind, corrected while it runs",
        10,
        _wrong,
        missing=_missing,
    ),
    Row(
        "clock-later",
        "31 or 61 days pass in a running worker that lost Kafka's replies",
        10,
        _later,
        is_long=True,
        proxied=Server.KAFKA,
        worker_proxied=True,
        missing=_missing,
    ),
)
