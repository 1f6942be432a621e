"""The formatted log of this process."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from execution_events.logs import configure_logging


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
