"""A day of a platform's executions, as large as wanted: some fail, retry or fall silent."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, zip_longest
from random import Random

from execution_events.events import Occurrence
from execution_events.publisher import lifecycle
from execution_events.publisher.lifecycle import Reason

TENANT = "c51567523b744d098a8a81ede51894ac"
"""The namespace of the README's questions, which is the first tenant's."""
ELEMENTS = 35
EVENTS_OF_AN_EXECUTION = 140
"""Of one without failures: each element is created and deleted, with a start and an end."""

_LENGTH = timedelta(days=1)
_CONCURRENT = 64
"""Executions whose events are interleaved."""
_SILENT = 0.001
"""The part of actions that start and are not heard of again."""
_TYPES = ("KubeDAG.init", "KubeDAG.job", "KubeDAG.service", "KubeDAG.sensor")
_CAUSES = (
    "exit code 137 (OOMKilled)",
    "exit code 1",
    "image pull failed: registry.example:5000/base:20180820 not found",
    "no node has 4096 MiB of memory",
    "volume pvc-0a1b2c3d-1111-4222-8333-444455556666 is not bound",
)


@dataclass(frozen=True)
class Day:
    """Executions that begin within the 24 hours before `until`, in the order of their begin.

    `failures` is the part of actions that fail, each after some retries. Executions belong to the
    tenants in turn.
    """

    executions: int
    until: datetime
    tenants: int = 1
    failures: float = 0.02

    @property
    def events(self) -> int:
        """The number of events, about."""
        return self.executions * EVENTS_OF_AN_EXECUTION

    def occurrences(self) -> Iterator[Occurrence]:
        """Yield all occurrences before `until`; those of concurrent executions are interleaved."""
        for first in range(0, self.executions, _CONCURRENT):
            numbers = range(first, min(first + _CONCURRENT, self.executions))
            for event in chain.from_iterable(zip_longest(*map(self.of_execution, numbers))):
                if event is not None and event.last_timestamp < self.until:
                    yield event

    def of_execution(self, number: int) -> Iterator[Occurrence]:
        """Yield the occurrences of an execution; calls agree."""
        rng = Random(number)
        execution = _Execution(
            str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            TENANT if number % self.tenants == 0 else f"tenant-{number % self.tenants}",
        )
        begun = self.until - _LENGTH * (1 - number / self.executions)
        for element in range(ELEMENTS):
            moment = begun + timedelta(seconds=2 * element)
            for action in ("create", "delete"):
                yield execution.event(element, action, lifecycle.ACTION_START, moment)
                moment += timedelta(seconds=rng.expovariate(1 / 30))
                chance = rng.random()
                if chance < self.failures:
                    retries = rng.randint(1, 20)
                    yield execution.event(element, action, lifecycle.ACTION_RETRY, moment, retries)
                    cause = rng.choice(_CAUSES)
                    yield execution.event(
                        element, action, lifecycle.ACTION_FAILED, moment, 1, cause
                    )
                elif chance < 1 - _SILENT:
                    yield execution.event(element, action, lifecycle.SUCCESSFUL_FINISH, moment)


@dataclass(frozen=True)
class _Execution:
    execution_id: str
    namespace: str

    def event(
        self,
        element: int,
        action: str,
        reason: Reason,
        moment: datetime,
        count: int = 1,
        cause: str | None = None,
    ) -> Occurrence:
        elem_id = f"job-{element}-init"
        message = reason.message(elem_id, action)
        return Occurrence(
            execution_id=self.execution_id,
            namespace=self.namespace,
            name=f"gcs-exec.{element:x}{action}{reason.code}",
            object_name="gcs-exec",
            object_namespace=self.namespace,
            reason=reason.text,
            message=message if cause is None else f"{message}: {cause}",
            first_timestamp=moment,
            last_timestamp=moment,
            count=count,
            type=reason.type,
            elem_type=_TYPES[element % len(_TYPES)],
            elem_id=elem_id,
            action_name=action,
        )
