"""The runner of episodes, with their progress on the terminal."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.faults import source as sources
from tests.faults.cluster import Cluster, cluster
from tests.faults.episode import Outcome, Row, Server, run_episode
from tests.faults.results import Result, of_outcome, today
from tests.faults.source import Source


class Planned(NamedTuple):
    """One episode to run."""

    row: Row
    seed: int


@contextmanager
def snapshot() -> Iterator[Source]:
    """Copy the product's source as it is now."""
    with tempfile.TemporaryDirectory(prefix="execution-events-source-") as directory:
        yield sources.copy(Path(directory) / "services")


async def run_all(
    source: Source,
    plan: Iterable[Planned],
    record: Callable[[Result], None],
    *,
    concurrency: int = 1,
    until_violation: bool = False,
) -> list[Result]:
    """Run the episodes of `plan` on one cluster and pass each result to `record` immediately.

    A row that cannot run on this machine or source gives one result with the reason. Up to
    `concurrency` episodes run at the same time, as each has its own consumers, topic and database
    and waits most of the time; those whose faults affect the same server do not overlap.
    """
    plan = list(plan)
    digest = source.digest()
    results: list[Result] = []

    def note(result: Result) -> None:
        results.append(result)
        record(result)

    possible: list[Planned] = []
    skipped: set[str] = set()
    for planned in plan:
        row = planned.row
        if (reason := row.missing(source)) is None:
            possible.append(planned)
        elif row.name not in skipped:
            skipped.add(row.name)
            print(f"{row.name}: skipped: {reason}", flush=True)
            note(Result(row.name, planned.seed, digest, today(), missing=reason))

    begun = 0

    async def run(servers: Cluster, planned: Planned) -> None:
        nonlocal begun
        begun += 1
        line = Progress(f"[{begun}/{len(possible)}] {planned.row.name} --seed {planned.seed}")
        outcome = await run_episode(servers, source, *planned, line.phase)
        line.end(outcome)
        note(of_outcome(outcome, digest))

    async with cluster(source) as servers:
        for together in concurrent_groups(possible, concurrency):
            await _run_concurrently(together, concurrency, partial(run, servers))
            if until_violation and results[-1].violations and not results[-1].vacuous:
                break
    return results


async def _run_concurrently(
    plan: Iterable[Planned], concurrency: int, run: Callable[[Planned], Awaitable[None]]
) -> None:
    """Run `plan` in order, as far as its episodes can run: one at a time through each proxy."""
    left = list(plan)
    busy: set[Server] = set()
    changed = asyncio.Condition()

    def free() -> Planned | None:
        return next((planned for planned in left if planned.row.proxied not in busy), None)

    async def worker() -> None:
        while True:
            async with changed:
                await changed.wait_for(lambda: not left or free() is not None)
                if (planned := free()) is None:
                    return
                left.remove(planned)
                server = planned.row.proxied
                if server is not None:
                    busy.add(server)
            await run(planned)
            async with changed:
                if server is not None:
                    busy.remove(server)
                changed.notify_all()

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())


def concurrent_groups(plan: Sequence[Planned], concurrency: int) -> list[list[Planned]]:
    """Return groups of episodes that may run concurrently.

    With a concurrency of 1 each episode is a group, in the order of `plan`.
    """
    if concurrency == 1:
        return [[planned] for planned in plan]
    together = [planned for planned in plan if not planned.row.alone]
    # The longest first: proxied episodes, which wait for each other, then the matrix backwards.
    together.reverse()
    together.sort(key=lambda planned: planned.row.proxied is None)
    alone = [[planned] for planned in plan if planned.row.alone]
    return [together, *alone] if together else alone


class Progress:
    """One episode's line: its phase while it runs on a terminal, its outcome at the end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._live = sys.stdout.isatty()

    def phase(self, name: str) -> None:
        """Show that the episode has reached the phase `name`."""
        if self._live:
            seconds = time.monotonic() - self._started
            print(f"\r\x1b[K{self._title}  {seconds:.0f} s  {name}", end="", flush=True)

    def end(self, outcome: Outcome) -> None:
        """Print the outcome and every violation."""
        begin = "\r\x1b[K" if self._live else ""
        recovery = "none" if outcome.recovery is None else f"{outcome.recovery:.1f} s"
        state = "FAILED" if outcome.violations else "ok"
        records = outcome.verdict.records if outcome.verdict else 0
        print(
            f"{begin}{self._title}  {state}  recovery {recovery}, {records} records,"
            f" {outcome.seconds:.0f} s in total  {outcome.evidence}",
            flush=True,
        )
        for violation in outcome.violations:
            print(f"    {violation}", flush=True)
