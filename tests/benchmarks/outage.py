"""What a worker with a spool feels of an outage of its broker, and how soon it is over."""

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
from tests.benchmarks.worker import ROOT
from tests.support.configuration import configured
from tests.support.processes import environment

DRAIN_BAR = 30
"""Seconds."""
BEFORE = 5
"""Seconds of the load before the broker is killed, at most as many as it is away then."""
_LOOK = 0.2
"""Seconds between two looks at memory and files."""
_ANSWER_TIMEOUT = 330
"""Seconds; more than the worker's own."""

COLUMNS = ("Broker", "seconds", "calls", "p50 ms", "p99 ms", "max ms", "latest ms")
_CALLS = ("calls", "p50", "p99", "max", "late")
THERE, AWAY, BACK, AFTER = "there", "away", "starting, draining", "there again"


class Worker:
    """The worker's process, while the context is open; `peak_spool` is in bytes."""

    def __init__(self, process: asyncio.subprocess.Process, spool: Path) -> None:
        self._process = process
        self._spool = spool
        self.peak_spool = 0

    async def ask(self, command: str) -> dict[str, Any]:
        """Give it a command and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Its next answer."""
        assert self._process.stdout is not None
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the worker has ended")
        content: dict[str, Any] = json.loads(line)
        return content

    def memory(self, what: str) -> float:
        """See `usage.memory`."""
        return usage.memory(self._process.pid, what)

    async def watch(self) -> None:
        """Look at the spool's files for ever."""
        while True:
            with suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in self._spool.rglob("*"))
                self.peak_spool = max(self.peak_spool, size)
            await asyncio.sleep(_LOOK)


@dataclass(frozen=True)
class Outage:
    """What was measured. Seconds and calls are by phase, memory in MiB by moment."""

    rate: int
    seconds: dict[str, float]
    calls: dict[str, dict[str, float]]
    memory: dict[str, float]
    peak_spool: int
    """Bytes of the spool's files."""
    drained: float
    """Seconds from the broker's readiness until it had all that was published before."""
    published: list[int]
    """Events by element."""
    failures: list[str]
    left: int
    audit: Audit

    @property
    def missing(self) -> int:
        """Events that are not in the log."""
        names = {
            name_of(element, number)
            for element, published in enumerate(self.published)
            for number in range(published)
        }
        return len(names - self.audit.names)


async def run(seconds: int, rate: int) -> Report:
    """Publish at `rate`, with the broker away for `seconds`, and audit the log."""
    before = min(BEFORE, seconds)
    progress = Progress()
    async with broker() as kafka:
        settings = configured(kafka.settings, spool_dir=str(kafka.place / "spool"))
        async with _worker(settings, rate) as worker:
            progress.show(before, "s with the broker")
            await asyncio.sleep(before)
            memory = {"before": worker.memory("VmRSS")}
            calls = {THERE: await worker.ask("mark")}
            await kafka.kill()
            killed = time.monotonic()
            for second in range(seconds):
                progress.show(second, f"of {seconds} s without the broker")
                await asyncio.sleep(1)
            calls[AWAY] = await worker.ask("mark")
            starting = time.monotonic()
            await kafka.kafka.start()
            ready = time.monotonic()
            progress.show(0, "s: drains")
            await worker.ask("flush")
            drained = time.monotonic()
            calls[BACK] = await worker.ask("mark")
            await asyncio.sleep(before)
            calls[AFTER] = await worker.ask("mark")
            memory |= {"after": worker.memory("VmRSS"), "peak": worker.memory("VmHWM")}
            end = await worker.ask("stop")
        progress.show(0, "records read")
        servers = settings.kafka.bootstrap_servers
        audit = await asyncio.to_thread(
            lambda: Audit.of(log.read(servers, settings.kafka.topic, PARTITIONS))
        )
    progress.end()
    spans = {THERE: before, AWAY: starting - killed, BACK: drained - starting, AFTER: before}
    return report(
        Outage(rate, spans, calls, memory, worker.peak_spool, drained - ready, **end, audit=audit)
    )


@asynccontextmanager
async def _worker(settings: Settings, rate: int) -> AsyncIterator[Worker]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.outage_worker", str(rate)),
        cwd=ROOT,
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
    """The table of what was measured."""
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
        "first copies misplaced in their partition": audit.misplaced,
        "first copies out of the order of their execution": audit.disordered,
    }
    return Report(
        "outage",
        {"rate": outage.rate, "seconds": round(outage.seconds[AWAY]), "partitions": PARTITIONS},
        COLUMNS,
        rows,
        [
            *(Verdict(what, number, 0, at_most=True) for what, number in wrong.items()),
            Verdict("drained after the broker's readiness", outage.drained, DRAIN_BAR, "s", True),
        ],
        [
            f"{published:,} events published, {outage.rate} a second without a pause; the log has"
            f" {audit.records:,} records, {audit.copies:,} of them copies.",
            f"Memory of the worker: {memory['before']:.0f} MiB before, at most"
            f" {memory['peak']:.0f}, {memory['after']:.0f} after."
            f" The spool's files: at most {outage.peak_spool / 2**20:.0f} MiB.",
            "`latest` is the most that a call began after its time.",
        ],
        vars(outage) | {"audit": vars(audit) | {"names": len(audit.names)}},
        [f"{number} {what}" for what, number in wrong.items() if number],
    )
