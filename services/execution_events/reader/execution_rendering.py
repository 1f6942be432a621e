"""Lists of executions as the API writes them."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from execution_events.bilingual import Lang, half
from execution_events.projection.body import Times, decode
from execution_events.reader.rendering import ListFormat
from execution_events.store.read.executions import StoredExecution

_encoder = msgspec.json.Encoder()
_PRECISION = {"second": "seconds", "micro": "microseconds"}


class _Elements(msgspec.Struct, gc=False, rename="camel"):
    total: int
    running: int
    succeeded: int
    failed: int
    timed_out: int
    cancelled: int


class _Failure(msgspec.Struct, gc=False, rename="camel"):
    elem_id: str
    action_name: str
    reason: str
    message: str


class _Execution(msgspec.Struct, gc=False, rename="camel"):
    execution_id: str
    namespace: str
    object_name: str
    state: str
    elements: _Elements
    warnings: int
    events: int
    occurrences: int
    first_timestamp: str
    last_timestamp: str
    created_at: str
    first_failure: _Failure | None


def render_executions(
    executions: Sequence[StoredExecution], format_: ListFormat, lang: Lang, times: Times
) -> bytes:
    """Return the body of a list."""
    shown = [_shown(execution, lang, times) for execution in executions]
    return _encoder.encode_lines(shown) if format_ == "lines" else _encoder.encode(shown)


def _shown(execution: StoredExecution, lang: Lang, times: Times) -> _Execution:
    return _Execution(
        execution.execution_id,
        execution.namespace,
        execution.object_name,
        execution.state,
        _Elements(
            execution.elements,
            execution.running,
            execution.succeeded,
            execution.failed,
            execution.timed_out,
            execution.cancelled,
        ),
        execution.warnings,
        execution.events,
        execution.occurrences,
        _time(execution.first_timestamp, times),
        _time(execution.last_timestamp, times),
        _time(execution.created_at, times),
        None if execution.first_failure is None else _failure(execution.first_failure, lang),
    )


def _failure(body: bytes, lang: Lang) -> _Failure:
    """Return the failure that an event with this `body` tells."""
    event = decode(body)
    return _Failure(
        event.elem_id, event.action_name, half(event.reason, lang), half(event.message, lang)
    )


def _time(moment: datetime, times: Times) -> str:
    # In UTC, as its session is.
    return f"{moment.isoformat(timespec=_PRECISION[times]).removesuffix('+00:00')}Z"
