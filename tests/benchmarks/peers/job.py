"""What a peer is told: where records are, where rows go, and how the one becomes the other.

Peers run in an environment of their own, so this module needs nothing but the standard library.
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
"""Where in a record's JSON the value of each column is."""

UPSERT = f"""
    INSERT INTO {TABLE} ({", ".join(FIELDS)})
    VALUES ({", ".join(f"${number + 1}" for number in range(len(FIELDS)))})
    ON CONFLICT ({", ".join(KEY)}) DO UPDATE SET
        count = {TABLE}.count + excluded.count,
        {", ".join(f"{name} = excluded.{name}" for name in FIELDS if name not in (*KEY, "count"))}
"""
"""Counts are added; of all else the last write wins."""

_VARIABLE = "EXECUTION_EVENTS_BENCHMARK_JOB"


@dataclass(frozen=True)
class Job:
    """One run of one peer."""

    servers: str
    topic: str
    group: str
    database_url: str
    batch: int
    """Records of a transaction, at most."""

    def environment(self) -> dict[str, str]:
        """The variables from which `load` reads it."""
        return {_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def load(cls) -> Self:
        return cls(**json.loads(os.environ[_VARIABLE]))


def row(value: Mapping[str, Any]) -> dict[str, Any]:
    """A record's JSON object as columns; timestamps stay text."""
    columns = {}
    for column, path in FIELDS.items():
        found: Any = value
        for key in path:
            found = found[key]
        columns[column] = found
    return columns
