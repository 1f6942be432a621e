"""Many executions of some tenants, written by COPY: enough of them for lists of executions.

Executions that succeeded have neither events nor actions, which no such list reads.
"""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from hashlib import md5
from typing import Any, NamedTuple

import asyncpg

TENANTS = 20
LARGE, SMALL = "tenant-0", "tenant-1"
"""A tenant of a quarter of all executions, and one of the others, which are equal."""
OBJECTS = 100
_TOGETHER = 8
"""Executions that are created by one transaction."""
_APART = timedelta(seconds=3)
_LENGTH = timedelta(minutes=2)
_ELEMENTS, _EVENTS = 35, 140
_REASON = "执行失败##ActionFailed"
_MESSAGE = (
    "元素(job-7-init)执行create失败: exit code 137 (OOMKilled) ## Element(job-7-init) execute"
    " Action: create failed: exit code 137 (OOMKilled)"
)


class Execution(NamedTuple):
    """An execution; `is_failed` or else succeeded."""

    created_at: datetime
    execution_id: str
    namespace: str
    object_name: str
    is_failed: bool

    def shown(self) -> dict[str, Any]:
        """Return the object of the API, written without the product's code."""
        failure = {
            "elemId": "job-7-init",
            "actionName": "create",
            "reason": _REASON,
            "message": _MESSAGE,
        }
        return {
            "executionId": self.execution_id,
            "namespace": self.namespace,
            "objectName": self.object_name,
            "state": "failed" if self.is_failed else "succeeded",
            "elements": {
                "total": _ELEMENTS,
                "running": 0,
                "succeeded": _ELEMENTS - self.is_failed,
                "failed": int(self.is_failed),
                "timedOut": 0,
                "cancelled": 0,
            },
            "warnings": int(self.is_failed),
            "events": _EVENTS,
            "occurrences": _EVENTS,
            "firstTimestamp": _seconds(self.created_at),
            "lastTimestamp": _seconds(self.created_at + _LENGTH),
            "createdAt": _seconds(self.created_at),
            "firstFailure": failure if self.is_failed else None,
        }


@dataclass(frozen=True)
class Executions:
    """Executions of `TENANTS` tenants, created until `newest`; a share of `failures` failed."""

    number: int
    failures: float
    newest: datetime

    def descending(self) -> Iterator[Execution]:
        """Yield all executions, the newest first, in the order of the API."""
        for first in range(0, self.number, _TOGETHER):
            numbers = range(first, min(first + _TOGETHER, self.number))
            yield from sorted(map(self._execution, numbers), reverse=True)

    def _execution(self, number: int) -> Execution:
        """Return the execution before which so many groups are newer."""
        digest = md5(number.to_bytes(8, "big"), usedforsecurity=False).digest()
        tenant = 0 if digest[0] < 64 else 1 + digest[1] % (TENANTS - 1)
        return Execution(
            self.newest - number // _TOGETHER * _APART,
            str(uuid.UUID(bytes=digest)),
            f"tenant-{tenant}",
            f"dag-{digest[2] % OBJECTS}",
            int.from_bytes(digest[-4:], "big") < self.failures * 2**32,
        )


def body(executions: Iterator[Execution] | list[Execution]) -> bytes:
    """Return a list as the API must write it."""
    shown = [each.shown() for each in executions]
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()


async def store(connection: asyncpg.Connection, executions: Executions) -> None:
    """Store executions in the order of their creation, as their owner."""
    ascending = list(executions.descending())[::-1]
    copy = partial(_copy, connection)
    await copy("execution", map(_execution_row, ascending))
    failed = [each for each in ascending if each.is_failed]
    await copy("action", map(_action_row, failed))
    await copy("event", map(_event_row, failed))


async def _copy(connection: asyncpg.Connection, table: str, rows: Iterator[dict[str, Any]]) -> None:
    first = next(rows, None)
    if first is not None:
        await connection.copy_records_to_table(
            table,
            schema_name="execution_events",
            columns=list(first),
            records=(tuple(row.values()) for row in _with(first, rows)),
        )


def _with(first: dict[str, Any], rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rows


def _execution_row(execution: Execution) -> dict[str, Any]:
    begin = execution.created_at
    return {
        "execution_id": execution.execution_id,
        "namespace": execution.namespace,
        "revision": int(begin.timestamp() * 1_000_000),
        "events": _EVENTS,
        "occurrences": _EVENTS,
        "first_timestamp": begin,
        "last_timestamp": begin + _LENGTH,
        "created_at": begin,
        "changed_at": begin + _LENGTH,
        "object_name": execution.object_name,
        "elements": _ELEMENTS,
        "running": 0,
        "succeeded": _ELEMENTS - execution.is_failed,
        "failed": int(execution.is_failed),
        "timed_out": 0,
        "cancelled": 0,
        "warnings": int(execution.is_failed),
    }


def _element(execution: Execution) -> dict[str, Any]:
    return {
        "execution_id": execution.execution_id,
        "namespace": execution.namespace,
        "object_name": execution.object_name,
        "elem_type": "KubeDAG.init",
        "elem_id": "job-7-init",
        "action_name": "create",
    }


def _action_row(execution: Execution) -> dict[str, Any]:
    end = execution.created_at + _LENGTH
    return _element(execution) | {
        "action_key": bytes(16),
        "kind": 0,
        "state": "failed",
        "decided_at": end,
        "decided_by": "dag.failed",
        "started": execution.created_at,
        "last_seen": end,
        "last_event": "dag.failed",
        "attempts": 1,
        "retries": 0,
        "warnings": 1,
        "failure": _MESSAGE.partition("## ")[2],
        "fingerprint": "0" * 16,
    }


def _event_row(execution: Execution) -> dict[str, Any]:
    end = execution.created_at + _LENGTH
    content = {
        "metadata": {"name": "dag.failed", "namespace": execution.namespace},
        "involvedObject": {"name": execution.object_name, "namespace": execution.namespace},
        "reason": _REASON,
        "message": _MESSAGE,
        "firstTimestamp": _seconds(end),
        "lastTimestamp": _seconds(end),
        "count": 1,
        "type": "Warning",
        "elemType": "KubeDAG.init",
        "elemId": "job-7-init",
        "actionName": "create",
    }
    return _element(execution) | {
        "name": "dag.failed",
        "reason": _REASON,
        "list_position": end,
        "first_timestamp": end,
        "last_timestamp": end,
        "count": 1,
        "type": "Warning",
        "body": json.dumps(content, ensure_ascii=False).encode(),
        "element_hash": 0,
    }


def _seconds(moment: datetime) -> str:
    return moment.isoformat()[:19] + "Z"
