"""Generators of the references in `schemas/`.

python -m tests.support.references [NAME...]
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from execution_events.metrics import ConsumerMetrics, Definition, ReaderMetrics

SCHEMAS = Path(__file__).parents[2] / "schemas"


def metrics() -> str:
    """Return the reference of all metrics."""
    lines = ["# Metrics", "", "At `/metrics` of the management port, since the process started."]
    for title, service in (
        ("Consumer", ConsumerMetrics(CollectorRegistry())),
        ("Reader", ReaderMetrics(CollectorRegistry())),
    ):
        lines += ["", f"## {title}", "", *_table(service.definitions)]
    return "\n".join(lines) + "\n"


def _table(definitions: Iterable[Definition]) -> Iterator[str]:
    yield "| Name | Type | Help | Labels |"
    yield "|---|---|---|---|"
    for name, kind, text, labels in definitions:
        described = "<br>".join(f"`{label}`: {values}" for label, values in labels.items())
        yield f"| `{name}` | {kind} | {text} | {described} |"


REFERENCES: Mapping[str, Callable[[], str]] = {"metrics": metrics}
"""The generator of each file `schemas/NAME.md`."""


def main(names: list[str]) -> None:
    """Write the references of `names`, all of them by default."""
    for name in names or REFERENCES:
        (SCHEMAS / f"{name}.md").write_text(REFERENCES[name]())


if __name__ == "__main__":
    main(sys.argv[1:])
