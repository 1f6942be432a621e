"""Rows of the table `event`."""

from datetime import datetime
from typing import Any

from execution_events.events import Occurrence
from execution_events.projection.body import decode
from execution_events.projection.fold import FoldedEvent

EVENT_COLUMNS = (
    "execution_id",
    "namespace",
    "name",
    "first_timestamp",
    "last_timestamp",
    "count",
    "object_name",
    "reason",
    "type",
    "elem_type",
    "elem_id",
    "action_name",
    "body",
    "list_position",
    "element_hash",
)


def event_row(event: FoldedEvent, body: bytes, element_hash: int) -> tuple[Any, ...]:
    """Return the values of `EVENT_COLUMNS`, in their order.

    A plain tuple: naming each value would take ten times as long, for every event.
    """
    latest = event.latest
    return (
        latest.execution_id,
        latest.namespace,
        latest.name,
        event.first_timestamp,
        latest.last_timestamp,
        event.count,
        latest.object_name,
        latest.reason,
        latest.type,
        latest.elem_type,
        latest.elem_id,
        latest.action_name,
        body,
        event.list_position,
        element_hash,
    )


def stored_event(
    execution_id: str,
    list_position: datetime,
    first: datetime,
    last: datetime,
    count: int,
    body: bytes,
) -> FoldedEvent:
    content = decode(body)
    latest = Occurrence(
        execution_id=execution_id,
        namespace=content.metadata.namespace,
        name=content.metadata.name,
        object_name=content.involved_object.name,
        object_namespace=content.involved_object.namespace,
        reason=content.reason,
        message=content.message,
        first_timestamp=first,
        last_timestamp=last,
        count=count,
        type=content.type,
        elem_type=content.elem_type,
        elem_id=content.elem_id,
        action_name=content.action_name,
    )
    return FoldedEvent(latest, count, first, list_position)
