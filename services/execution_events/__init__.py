"""The event service of a task-orchestration platform: exact counts of element lifecycle events.

What workers use; each name is imported when it is first asked for:

- `Publisher`: publishes events, with asyncio; `execution_events.sync.Publisher` for threads.
- `Event`: an event as a worker says it; `NORMAL` and `WARNING` are the types of events.
- `Element`, `Action`: what `Publisher.element` gives, and the scope of an action.
- `ExecutionEventsError`: the base of the errors; the name of each says what to do. `EventError`:
  correct the event. `RetryableError`: try again later; `SpoolFullError` is one. `SettingsError`:
  correct the setting.

`execution_events.testing` has publishers for the tests of workers.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from execution_events.errors import (
        EventError,
        ExecutionEventsError,
        RetryableError,
        SettingsError,
        SpoolFullError,
    )
    from execution_events.events import NORMAL, WARNING
    from execution_events.publisher import Publisher
    from execution_events.publisher.element import Action, Element
    from execution_events.publisher.event import Event
else:
    _HOMES = {
        "Action": "publisher.element",
        "Element": "publisher.element",
        "Event": "publisher.event",
        "EventError": "errors",
        "ExecutionEventsError": "errors",
        "NORMAL": "events",
        "Publisher": "publisher",
        "RetryableError": "errors",
        "SettingsError": "errors",
        "SpoolFullError": "errors",
        "WARNING": "events",
    }

    # Hidden from type checkers, which would else take any name for one of ours.
    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "NORMAL",
    "WARNING",
    "Action",
    "Element",
    "Event",
    "EventError",
    "ExecutionEventsError",
    "Publisher",
    "RetryableError",
    "SettingsError",
    "SpoolFullError",
]
