"""Concurrent episodes share no fault, and a full run can be resumed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults import runner
from tests.faults.__main__ import main
from tests.faults.episode import Outcome, Row, Server
from tests.faults.results import REPORT, episodes
from tests.faults.rows import ROWS
from tests.faults.rows import row as row_of
from tests.faults.runner import Planned, concurrent_groups, run_all
from tests.faults.source import Source

TOUCH_SERVERS = ("restart", "down", "disk", "broker", "retention", "three")
"""Parts of the names of rows whose fault affects every episode."""


class Running:
    """A fake of the episodes that records which of them ran concurrently."""

    def __init__(self) -> None:
        self.now: list[Row] = []
        self.together: list[list[Row]] = []
        self.order: list[str] = []

    async def __call__(
        self, servers: Any, source: Source, row: Row, seed: int, on_phase: Callable[[str], None]
    ) -> Outcome:
        self.now.append(row)
        self.order.append(row.name)
        self.together.append(list(self.now))
        await asyncio.sleep(0.005)
        self.now.remove(row)
        violations = ["wrong"] if row.name == "kill-begun" else []
        return Outcome(row.name, seed, 1.0, None, violations, {}, 0.0, vacuous=False)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Running:
    @asynccontextmanager
    async def no_servers(source: Source) -> AsyncIterator[None]:
        yield

    running = Running()
    monkeypatch.setattr(runner, "cluster", no_servers)
    monkeypatch.setattr(runner, "run_episode", running)
    monkeypatch.setattr(Source, "mentions", lambda source, text: True)
    monkeypatch.setattr("tests.faults.disk.missing", lambda: None)
    return running


def source(path: Path) -> Source:
    cli = path / "execution_events" / "cli"
    cli.mkdir(parents=True)
    (cli / "topic.py").write_text('"accept"')
    return Source(path)


def names(plan: list[list[Planned]]) -> list[str]:
    return [planned.row.name for together in plan for planned in together]


PLAN = [Planned(row, 1) for row in ROWS]


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_episodes_share_no_fault(ran: Running, tmp_path: Path, concurrency: int) -> None:
    recorded: list[str] = []
    results = await run_all(
        source(tmp_path), PLAN, lambda result: recorded.append(result.row), concurrency=concurrency
    )

    assert sorted(recorded) == sorted(row.name for row in ROWS)
    assert [result.row for result in results] == recorded
    assert max(len(rows) for rows in ran.together) == concurrency
    for rows in ran.together:
        if any(row.alone for row in rows):
            assert len(rows) == 1
        for server in Server:
            assert sum(row.proxied is server for row in rows) <= 1
    if concurrency == 1:
        assert ran.order == [row.name for row in ROWS]


async def test_a_run_can_stop_at_the_first_violation(ran: Running, tmp_path: Path) -> None:
    results = await run_all(source(tmp_path), PLAN, lambda result: None, until_violation=True)
    assert [result.row for result in results] == ["kill-fetched", "kill-begun"]


def test_a_full_run_resumes_from_recorded_results(
    ran: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a file of its own, a run depends on no committed results and leaves their report alone.
    committed = REPORT.read_bytes()
    file = tmp_path / "results.jsonl"
    monkeypatch.setattr(
        "sys.argv", ["faults", "run", "--full", "--row", "poison", "--report", str(file)]
    )
    assert main() == 0
    assert len(ran.order) == len(episodes(file)) == row_of("poison").episodes
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-2]))
    assert main() == 0
    assert len(ran.order) == row_of("poison").episodes + 2
    assert REPORT.read_bytes() == committed


def test_every_row_whose_fault_affects_all_episodes_runs_alone() -> None:
    for row in ROWS:
        assert row.alone == any(part in row.name for part in TOUCH_SERVERS), row.name
    assert sorted(names(concurrent_groups(PLAN, 3))) == sorted(row.name for row in ROWS)
    # Only one Kafka cluster runs at a time, so rows of another size cannot share it.
    assert all(row.alone for row in ROWS if row.brokers != 1)
