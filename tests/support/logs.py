"""The formatted log of this process."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from execution_events.logs import configure_logging


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """Return the fields of each record of `event`."""
    return [
        record.__dict__["fields"]
        for record in caplog.records
        if record.__dict__.get("event") == event
    ]


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the events of the package's records."""
    return [record.__dict__["event"] for record in caplog.records if "event" in record.__dict__]


@contextmanager
def logging_to(log_format: str) -> Iterator[io.StringIO]:
    """Capture all log entries in the format "json" or "text"."""
    package = logging.getLogger("execution_events")
    before = logging.root.handlers, logging.root.level, package.level
    stream = io.StringIO()
    configure_logging(log_format, "debug", stream)
    try:
        yield stream
    finally:
        logging.root.handlers, level, package_level = before
        logging.root.setLevel(level)
        package.setLevel(package_level)
