"""Events of the benchmarks, with the shape and size of the demo's fixed execution."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice

from execution_events.events import Occurrence
from execution_events.publisher import Event, lifecycle
from execution_events.publisher.lifecycle import Reason

NAMESPACE = "c51567523b744d098a8a81ede51894ac"
OBJECT_NAME = "gcs-exec-3-08-20-144951"
ELEMENT_TYPE = "KubeDAG.init"
EVENTS_OF_AN_EXECUTION = 140
CONCURRENT = 64
"""Executions that a worker runs concurrently; their events are interleaved."""

BEGUN = datetime(2026, 1, 1, 0, 0, 0, 123456, UTC)
"""Begin of executions with fixed times."""
APART = timedelta(milliseconds=37)
"""Between two events of an execution with fixed times."""

_ACTIONS = ("create", "delete")
_REASONS = (lifecycle.ACTION_START, lifecycle.SUCCESSFUL_FINISH)
EVENTS_OF_AN_ELEMENT = len(_ACTIONS) * len(_REASONS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def seed_shaped(number: int) -> Iterator[Event]:
    """Yield `number` events without recurrences: the most expensive case, each has a new name.

    Executions have new ids in each call.
    """
    return islice(_endless(), number)


def _endless() -> Iterator[Event]:
    while True:
        executions = [_execution(str(uuid.uuid4())) for _ in range(CONCURRENT)]
        for execution in islice(cycle(executions), CONCURRENT * EVENTS_OF_AN_EXECUTION):
            yield next(execution)


def _execution(execution_id: str) -> Iterator[Event]:
    elements = EVENTS_OF_AN_EXECUTION // EVENTS_OF_AN_ELEMENT
    for action in _ACTIONS:
        for element in range(elements):
            for reason in _REASONS:
                yield event(execution_id, f"job-{element}-init", action, reason)


def event(
    execution_id: str, element: str, action: str, reason: Reason, name: str | None = None
) -> Event:
    """Return an event of an execution."""
    return Event(
        execution_id=execution_id,
        namespace=NAMESPACE,
        name=name,
        object_name=OBJECT_NAME,
        reason=reason.text,
        message=reason.message(element, action),
        elem_type=ELEMENT_TYPE,
        elem_id=element,
        action_name=action,
    )


def occurrence(
    execution_id: str, position: int, *, begun: datetime = BEGUN, type_: str = "Normal"
) -> Occurrence:
    """Return event number `position` of an execution in the order of lists; calls agree."""
    element = f"job-{position // EVENTS_OF_AN_ELEMENT}-init"
    action = _ACTIONS[position // len(_REASONS) % len(_ACTIONS)]
    reason = _REASONS[position % len(_REASONS)]
    moment = begun + APART * position
    return Occurrence(
        execution_id=execution_id,
        namespace=NAMESPACE,
        name=f"{OBJECT_NAME}.{(moment - _EPOCH) // _MICROSECOND * 1000:x}",
        object_name=OBJECT_NAME,
        object_namespace=NAMESPACE,
        reason=reason.text,
        message=reason.message(element, action),
        first_timestamp=moment,
        last_timestamp=moment,
        count=1,
        type=type_,
        elem_type=ELEMENT_TYPE,
        elem_id=element,
        action_name=action,
    )
