"""Episodes side by side, and what they must not share."""

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
from tests.faults.runner import Planned, run_all, side_by_side
from tests.faults.source import Source

TOUCH_SERVERS = ("restart", "down", "disk", "broker", "retention", "three")
"""Parts of the names of rows whose fault meets every episode."""


class Running:
    """Stands in for the episodes, and remembers which ran at the same time."""

    def __init__(self) -> None:
        self.now: list[Row] = []
        self.together: list[list[Row]] = []
        self.order: list[str] = []

    async def __call__(
        self, servers: Any, source: Source, row: Row, seed: int, say: Callable[[str], None]
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


@pytest.mark.parametrize("lanes", [1, 3])
async def test_episodes_share_no_fault(ran: Running, tmp_path: Path, lanes: int) -> None:
    kept: list[str] = []
    results = await run_all(
        source(tmp_path), PLAN, lambda result: kept.append(result.row), lanes=lanes
    )

    assert sorted(kept) == sorted(row.name for row in ROWS)
    assert [result.row for result in results] == kept
    assert max(len(rows) for rows in ran.together) == lanes
    for rows in ran.together:
        if any(row.alone for row in rows):
            assert len(rows) == 1
        for server in Server:
            assert sum(row.proxied is server for row in rows) <= 1
    if lanes == 1:
        assert ran.order == [row.name for row in ROWS]


async def test_stops_at_a_violation(ran: Running, tmp_path: Path) -> None:
    results = await run_all(source(tmp_path), PLAN, lambda result: None, until_violation=True)
    assert [result.row for result in results] == ["kill-fetched", "kill-begun"]


def test_a_full_run_goes_on_where_its_results_are_kept(
    ran: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the committed results say, and without a change of their report."""
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


def test_every_row_whose_fault_meets_all_is_alone() -> None:
    for row in ROWS:
        assert row.alone == any(part in row.name for part in TOUCH_SERVERS), row.name
    assert sorted(names(side_by_side(PLAN, 3))) == sorted(row.name for row in ROWS)
    # One cluster of Kafka runs at a time, so a row of another size cannot share it.
    assert all(row.alone for row in ROWS if row.brokers != 1)
