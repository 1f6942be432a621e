"""Settings of tests, by the names of their variables."""

import os
from collections.abc import Iterator
from dataclasses import Field, fields, replace
from typing import Any

from execution_events.embedded import cache_directory
from execution_events.settings import Settings, load

CACHE_DIR = cache_directory(load(os.environ).cache_dir)
"""The directory of downloads, of the user who runs the tests."""


def each_setting() -> Iterator[tuple[str, str, Field[Any]]]:
    """Yield the variable in lower case, the group ("" for none) and the field of each setting."""
    for outer in fields(Settings):
        if "variable" in outer.metadata:
            yield outer.metadata["variable"].lower(), "", outer
        else:
            for field in fields(outer.default):  # type: ignore[arg-type]
                yield field.metadata["variable"].lower(), outer.name, field


def value_of(settings: Settings, variable: str) -> Any:
    """Return the value of a setting by its variable in lower case."""
    [(group, field)] = [(group, field) for name, group, field in each_setting() if name == variable]
    return getattr(getattr(settings, group) if group else settings, field.name)


def configured(settings: Settings | None = None, **values: Any) -> Settings:
    """Return `settings`, else the defaults, with `values` by variable in lower case.

    `configured(reader_port=0)` sets what `EXECUTION_EVENTS_READER_PORT=0` does.
    """
    settings = settings or Settings()
    for name, group, field in each_setting():
        if name not in values:
            continue
        change = {field.name: values.pop(name)}
        if group:
            change = {group: replace(getattr(settings, group), **change)}
        settings = replace(settings, **change)
    if values:
        raise TypeError(f"no such settings: {sorted(values)}")
    return settings
