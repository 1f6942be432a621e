"""Consumer processes under a supervisor that restarts them a second after they end."""

import asyncio
import json
import random
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from execution_events.embedded import ChildProcess
from tests.faults import failpoints
from tests.faults.proxy import HOST

RESTART_DELAY = 1.0  # seconds
KILLED = 128 + signal.SIGKILL
_GRACE = 40  # seconds
_FENCED = re.compile(r"^execution_events_fenced_batches_total ([0-9.e+]+)$", re.M)

_SEEDED = re.compile(r'^execution_events_lag_records{.*partition="(\d+)".*}', re.M)


class Consumer:
    """A supervised consumer. A life is the run of one process; `log` has the output of all.

    A fail point applies to one life only, or every later life would end at it again.
    """

    def __init__(self, name: str, environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.exits: list[int] = []
        self.stops = 0
        self.lives = 0
        self.started_at = 0.0
        self.log = log
        self._port = _free_port()
        self._environment = {
            **environment,
            "EXECUTION_EVENTS_MANAGEMENT_PORT": str(self._port),
            "EXECUTION_EVENTS_LOG_FORMAT": "text",
        }
        self._process: ChildProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._stopping = False

    async def start(self, fail_point: str | None = None) -> None:
        """Start the supervisor; `fail_point` (POINT:N:ACTION) applies to the first life."""
        self._stopping = False
        begun = asyncio.Event()
        self._supervisor = asyncio.create_task(self._supervise(fail_point, begun))
        await begun.wait()

    async def stop(self) -> int:
        """Stop the consumer by SIGTERM and return its exit code; do not restart it."""
        assert self._supervisor is not None
        self._stopping = True
        if self._process is None:
            self._supervisor.cancel()
            return 0
        ends = len(self.exits) + 1
        self._process.kill(signal.SIGCONT)
        # A process that has just started has no signal handler yet.
        deadline = time.monotonic() + _GRACE
        while not await self.scrape("/livez") and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        self._process.kill(signal.SIGTERM)
        self.stops += 1
        try:
            async with asyncio.timeout(_GRACE):
                await self.until_ended(ends)
        except TimeoutError:
            self._process.kill(signal.SIGKILL)
            await self.until_ended(ends)
        return self.exits[-1]

    async def close(self) -> None:
        """Kill the process, whatever its state."""
        if self._supervisor is None:
            return
        self._stopping = True
        if self._process is not None:
            self._process.kill(signal.SIGKILL)
        await asyncio.wait([self._supervisor], timeout=_GRACE)
        self._supervisor.cancel()
        await asyncio.gather(self._supervisor, return_exceptions=True)

    async def seeded(self) -> set[int]:
        """Return the partitions that the consumer has seeded."""
        return {int(number) for number in _SEEDED.findall(await self.scrape("/metrics"))}

    async def reasons(self) -> list[str]:
        """Return the reasons in `/readyz`; none if it is ready or does not respond."""
        with suppress(ValueError):
            return [str(reason) for reason in json.loads(await self.scrape("/readyz"))["reasons"]]
        return []

    @property
    def pid(self) -> int | None:
        """The process id of the current life, None between lives."""
        return None if self._process is None else self._process.pid

    def set(self, variable: str, value: str) -> None:
        """Set an environment variable for later lives."""
        self._environment[variable] = value

    def signal(self, number: signal.Signals) -> None:
        """Send `number` to the process."""
        assert self._process is not None
        self._process.kill(number)

    def unexpected_exits(self) -> list[int]:
        """Return the exit codes of lives that ended neither by SIGKILL nor by `stop`."""
        codes = [code for code in self.exits if code != KILLED]
        # Each stop accounts for one exit code 0.
        for _ in range(self.stops):
            if 0 in codes:
                codes.remove(0)
        return codes

    def is_stopped(self) -> bool:
        """Return True while the process is stopped by SIGSTOP."""
        if self._process is None:
            return False
        try:
            state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2]
        except OSError:
            return False
        return state.split()[0] == "T"

    async def until_ended(self, ends: int) -> None:
        """Return once the consumer has ended `ends` times in total."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.exits) >= ends)

    async def until_alive(self, lives: int) -> None:
        """Return once the consumer has been started `lives` times in total."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.lives >= lives)

    async def scrape(self, path: str) -> str:
        """Return the body of the management port's response, of any status; "" without one."""
        return await asyncio.to_thread(_get, f"http://{HOST}:{self._port}{path}")

    async def fenced(self) -> int:
        """Return the number of fenced batches in the current life."""
        found = _FENCED.search(await self.scrape("/metrics"))
        return int(float(found[1])) if found else 0

    async def _supervise(self, fail_point: str | None, begun: asyncio.Event) -> None:
        with self.log.open("a", buffering=1) as log:
            while not self._stopping:
                command = ["execution_events.cli", "consumer"]
                if fail_point is not None:
                    command = [failpoints.__name__, fail_point]
                    fail_point = None
                process = ChildProcess(
                    [sys.executable, "-m", *command],
                    env=self._environment,
                    grace=1,
                    on_line=lambda line: print(line, file=log),
                )
                async with process:
                    self._process = process
                    self.started_at = time.monotonic()
                    await self._record(lives=1)
                    begun.set()
                    code = await process.wait()
                    self._process = None
                print(f"ended with exit code {code}", file=log)
                await self._record(code=code)
                if not self._stopping:
                    await asyncio.sleep(RESTART_DELAY)

    async def _record(self, *, lives: int = 0, code: int | None = None) -> None:
        async with self._changed:
            self.lives += lives
            if code is not None:
                self.exits.append(code)
            self._changed.notify_all()


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:  # noqa: S310
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError:
        return ""


def _free_port() -> int:
    # Below the kernel's range of ephemeral ports.
    while True:
        port = random.randrange(12_000, 20_000)
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((HOST, port))
            except OSError:
                continue
        return port
