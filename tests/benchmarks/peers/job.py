"""A peer's job: the addresses of records and rows, and the mapping between them.

Peers run in an environment of their own, so this module imports only the standard library.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

TABLE = "plain_event"
KEY = ("execution_id", "namespace", "name")
FIELDS: Mapping[str, tuple[str, ...]] = {
    "execution_id": ("executionId",),
    "namespace": ("metadata", "namespace"),
    "name": ("metadata", "name"),
    "object_name": ("involvedObject", "name"),
    "object_namespace": ("involvedObject", "namespace"),
    "reason": ("reason",),
    "message": ("message",),
    "first_timestamp": ("firstTimestamp",),
    "last_timestamp": ("lastTimestamp",),
    "count": ("count",),
    "type": ("type",),
    "elem_type": ("elemType",),
    "elem_id": ("elemId",),
    "action_name": ("actionName",),
}
"""The path of each column's value in a record's JSON."""

UPSERT = f"""
    INSERT INTO {TABLE} ({", ".join(FIELDS)})
    VALUES ({", ".join(f"${number + 1}" for number in range(len(FIELDS)))})
    ON CONFLICT ({", ".join(KEY)}) DO UPDATE SET
        count = {TABLE}.count + excluded.count,
        {", ".join(f"{name} = excluded.{name}" for name in FIELDS if name not in (*KEY, "count"))}
"""
"""Adds counts; the last write wins in all other columns."""

_VARIABLE = "EXECUTION_EVENTS_BENCHMARK_JOB"


@dataclass(frozen=True)
class Job:
    """One run of one peer."""

    servers: str
    topic: str
    group: str
    database_url: str
    batch: int
    """Limit of records in a transaction."""

    def environment(self) -> dict[str, str]:
        """Return the variables that `load` reads."""
        return {_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def load(cls) -> Self:
        return cls(**json.loads(os.environ[_VARIABLE]))


def row(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a record's JSON object; timestamps stay text."""
    columns = {}
    for column, path in FIELDS.items():
        found: Any = value
        for key in path:
            found = found[key]
        columns[column] = found
    return columns
