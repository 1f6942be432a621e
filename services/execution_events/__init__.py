"""The event service of a task-orchestration platform: exact counts of element lifecycle events.

The interface for workers; each name is imported on first use:

- `Publisher`: the publisher for asyncio; `execution_events.sync.Publisher` is the one for threads.
- `Event`: an event; its type is `NORMAL` or `WARNING`.
- `Element`, `Action`: an element of an execution, and the scope of one of its actions.
- `ExecutionEventsError`: the base class of all errors, each of which is named after its remedy.
  `EventError`: correct the event. `RetryableError`, also `SpoolFullError`: try again later.
  `SettingsError`: correct the setting.

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
    _MODULES = {
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

    # Hidden from type checkers, which would otherwise accept any name.
    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value

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
