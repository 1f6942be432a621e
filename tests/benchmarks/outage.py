"""Effect of a broker outage on a worker with a spool, and the time until its spool is drained."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from execution_events.cli.progress import Progress
from execution_events.settings import Settings
from tests.benchmarks import log, usage
from tests.benchmarks.broker import PARTITIONS, broker
from tests.benchmarks.figures import Verdict, short
from tests.benchmarks.log import Audit
from tests.benchmarks.outage_worker import name_of
from tests.benchmarks.report import Report
from tests.benchmarks.trees import THIS
from tests.support.configuration import configured
from tests.support.processes import environment

DRAIN_BAR = 30
"""Seconds."""
BEFORE = 5
"""Seconds of load before the broker is killed, at most the length of the outage."""
_POLL_INTERVAL = 0.2
"""Seconds between two readings of the spool's size."""
_ANSWER_TIMEOUT = 330
"""Seconds; more than the worker's own timeout."""

COLUMNS = ("Broker", "seconds", "calls", "p50 ms", "p99 ms", "max ms", "max delay ms")
_CALLS = ("calls", "p50", "p99", "max", "late")
UP, DOWN, BACK, AFTER = "up", "down", "up, draining", "up, drained"


class Worker:
    """The worker's process, while the context is open; `peak_spool` is in bytes."""

    def __init__(self, process: asyncio.subprocess.Process, spool: Path) -> None:
        self._process = process
        self._spool = spool
        self.peak_spool = 0

    async def send(self, command: str) -> dict[str, Any]:
        """Send a command and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Return the next answer."""
        assert self._process.stdout is not None
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the worker ended")
        content: dict[str, Any] = json.loads(line)
        return content

    def memory(self, what: str) -> float:
        """Return MiB of the worker, by `usage.memory`."""
        return usage.memory(self._process.pid, what)

    async def watch(self) -> None:
        """Track the peak size of the spool's files until cancelled."""
        while True:
            with suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in self._spool.rglob("*"))
                self.peak_spool = max(self.peak_spool, size)
            await asyncio.sleep(_POLL_INTERVAL)


@dataclass(frozen=True)
class Outage:
    """Figures of one outage: seconds and calls by phase, memory in MiB by time."""

    rate: int
    seconds: dict[str, float]
    calls: dict[str, dict[str, float]]
    memory: dict[str, float]
    peak_spool: int
    """Bytes of the spool's files."""
    drained: float
    """Seconds from the broker's readiness until it had all events published before."""
    published: list[int]
    """Number of events by element."""
    failures: list[str]
    left: int
    audit: Audit

    @property
    def missing(self) -> int:
        """The number of events that are not in the log."""
        names = {
            name_of(element, number)
            for element, published in enumerate(self.published)
            for number in range(published)
        }
        return len(names - self.audit.names)


async def run(seconds: int, rate: int) -> Report:
    """Publish at `rate` through an outage of `seconds`, and audit the log."""
    before = min(BEFORE, seconds)
    progress = Progress()
    async with broker() as kafka:
        settings = configured(kafka.settings, spool_dir=str(kafka.directory / "spool"))
        async with _worker(settings, rate) as worker:
            progress.show(before, "s with the broker")
            await asyncio.sleep(before)
            memory = {"before": worker.memory("VmRSS")}
            calls = {UP: await worker.send("mark")}
            await kafka.kill()
            killed = time.monotonic()
            for second in range(seconds):
                progress.show(second, f"of {seconds} s without the broker")
                await asyncio.sleep(1)
            calls[DOWN] = await worker.send("mark")
            starting = time.monotonic()
            await kafka.kafka.start()
            ready = time.monotonic()
            progress.show(0, "s: draining the spool")
            await worker.send("flush")
            drained = time.monotonic()
            calls[BACK] = await worker.send("mark")
            await asyncio.sleep(before)
            calls[AFTER] = await worker.send("mark")
            memory |= {"after": worker.memory("VmRSS"), "peak": worker.memory("VmHWM")}
            end = await worker.send("stop")
        progress.show(0, "s: auditing the log")
        servers = settings.kafka.bootstrap_servers
        audit = await asyncio.to_thread(
            lambda: Audit.of(log.read(servers, settings.kafka.topic, PARTITIONS))
        )
    progress.end()
    spans = {UP: before, DOWN: starting - killed, BACK: drained - starting, AFTER: before}
    return report(
        Outage(rate, spans, calls, memory, worker.peak_spool, drained - ready, **end, audit=audit)
    )


@asynccontextmanager
async def _worker(settings: Settings, rate: int) -> AsyncIterator[Worker]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.outage_worker", str(rate)),
        cwd=THIS.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(settings),
    )
    worker = Worker(process, Path(settings.publisher.spool_dir or ""))
    watching = asyncio.create_task(worker.watch())
    try:
        await worker.answer()
        yield worker
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            await process.wait()
    finally:
        watching.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()


def report(outage: Outage) -> Report:
    """Return the table of the phases."""
    rows = [
        (
            phase,
            short(round(outage.seconds[phase])),
            *(short(round(calls.get(key, 0), 1)) for key in _CALLS),
        )
        for phase, calls in outage.calls.items()
    ]
    audit, memory = outage.audit, outage.memory
    published = sum(outage.published)
    wrong = {
        "calls failed": len(outage.failures),
        "events missing": outage.missing,
        "events left in the spool": outage.left,
        "first copies out of order in their partition": audit.misplaced,
        "first copies out of order in their execution": audit.disordered,
    }
    return Report(
        "outage",
        {"rate": outage.rate, "seconds": round(outage.seconds[DOWN]), "partitions": PARTITIONS},
        COLUMNS,
        rows,
        [
            *(Verdict(what, number, 0, at_most=True) for what, number in wrong.items()),
            Verdict("drained after the broker's readiness", outage.drained, DRAIN_BAR, "s", True),
        ],
        [
            f"{published:,} events published at a constant rate of {outage.rate} a second; the log"
            f" has {audit.records:,} records, {audit.copies:,} of them copies.",
            f"Memory of the worker: {memory['before']:.0f} MiB before, at most"
            f" {memory['peak']:.0f}, {memory['after']:.0f} after."
            f" Peak size of the spool: {outage.peak_spool / 2**20:.0f} MiB.",
            "`max delay` is the longest time by which a call began late.",
        ],
        vars(outage) | {"audit": vars(audit) | {"names": len(audit.names)}},
        [f"{number} {what}" for what, number in wrong.items() if number],
    )
