"""Runs episodes one after another and says how far it is."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.faults import source as sources
from tests.faults.cluster import cluster
from tests.faults.episode import Outcome, Row, run_episode
from tests.faults.results import Result, of_outcome, today
from tests.faults.source import Source


class Planned(NamedTuple):
    """One episode to run."""

    row: Row
    seed: int


@contextmanager
def snapshot() -> Iterator[Source]:
    """A copy of the product's source as it is now."""
    with tempfile.TemporaryDirectory(prefix="execution-events-source-") as directory:
        yield sources.copy(Path(directory) / "services")


async def run_all(
    source: Source,
    plan: Iterable[Planned],
    keep: Callable[[Result], None],
    *,
    until_violation: bool = False,
) -> list[Result]:
    """Run the episodes of `plan` on one cluster; each result goes to `keep` at once.

    A row that the product or the machine cannot be put to gives one result that says why.
    """
    plan = list(plan)
    digest = source.digest()
    results: list[Result] = []
    told: set[str] = set()
    async with cluster(source) as servers:
        for number, (row, seed) in enumerate(plan, 1):
            if (why := row.missing(source)) is not None:
                if row.name not in told:
                    told.add(row.name)
                    print(f"{row.name}: cannot run: {why}", flush=True)
                    results.append(Result(row.name, seed, digest, today(), missing=why))
                    keep(results[-1])
                continue
            say = Progress(f"[{number}/{len(plan)}] {row.name} --seed {seed}")
            outcome = await run_episode(servers, source, row, seed, say.phase)
            say.end(outcome)
            results.append(of_outcome(outcome, digest))
            keep(results[-1])
            if until_violation and outcome.violations and not outcome.vacuous:
                break
    return results


class Progress:
    """One episode's line: its phase while it runs on a terminal, its outcome at the end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._live = sys.stdout.isatty()

    def phase(self, name: str) -> None:
        """The episode has come to `name`."""
        if self._live:
            seconds = time.monotonic() - self._started
            print(f"\r\x1b[K{self._title}  {seconds:.0f} s  {name}", end="", flush=True)

    def end(self, outcome: Outcome) -> None:
        """Say what became of it, and all that is wrong."""
        begin = "\r\x1b[K" if self._live else ""
        recovery = "never" if outcome.recovery is None else f"{outcome.recovery:.1f} s"
        state = "FAILED" if outcome.violations else "ok"
        records = outcome.verdict.records if outcome.verdict else 0
        print(
            f"{begin}{self._title}  {state}  recovery {recovery}, {records} records,"
            f" {outcome.seconds:.0f} s in all  {outcome.evidence}",
            flush=True,
        )
        for violation in outcome.violations:
            print(f"    {violation}", flush=True)
