"""Logs: constant event names with fields, as text on a terminal and as JSON elsewhere.

A worker has a logging configuration of its own, so a record's message has the event and all of its
fields; a formatter that wants them apart finds them in the record's attributes `event` and
`fields`.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from math import inf
from typing import Any, TextIO

import msgspec

from execution_events.text import one_line


class Logger:
    """A logger of events: a constant snake_case name, and fields for everything that varies."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log an error with the traceback of the current exception."""
        self._log(logging.ERROR, event, fields, exc_info=True)

    def _log(self, level: int, event: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        if not self._logger.isEnabledFor(level):
            return
        # The template stays constant: tools that group records do so by it.
        template, values = (f"{event}  %s", (_text_of(fields),)) if fields else (event, ())
        self._logger.log(
            level,
            template,
            *values,
            extra={"event": event, "fields": fields},
            exc_info=exc_info,
            # The record names the caller's module and line.
            stacklevel=3,
        )


class Repetitions:
    """Counts of equal log events, each of which is logged at once and then once a minute.

    Thread-safe.
    """

    _INTERVAL = 60
    _FORGOTTEN_AFTER = 3600

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # By key, the time of the last logged event, and the number of events left out since.
        self._logged: dict[object, tuple[float, int]] = {}

    def count(self, key: object) -> dict[str, int] | None:
        """Count an event; return None if it is to be left out.

        Otherwise returns the field `repeated`, the number of events left out before, if any was.
        """
        with self._lock:
            now = self._clock()
            logged_at, left_out = self._logged.get(key, (-inf, 0))
            if now - logged_at < self._INTERVAL:
                self._logged[key] = logged_at, left_out + 1
                return None
            self._logged = {
                other: entry
                for other, entry in self._logged.items()
                if now - entry[0] < self._FORGOTTEN_AFTER
            }
            self._logged[key] = now, 0
            return {"repeated": left_out} if left_out else {}


def configure_logging(log_format: str, level: str, stream: TextIO) -> None:
    """Write all logs of the process to `stream`; those of libraries from level WARNING.

    `log_format` is "text", "json", or "auto": text if `stream` is a terminal, else JSON.
    """
    as_text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_TextFormatter() if as_text else _JsonFormatter())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("execution_events").setLevel(level.upper())


def _text_of(fields: dict[str, Any]) -> str:
    return " ".join(f"{name}={one_line(str(value))}" for name, value in fields.items())


class _TextFormatter(logging.Formatter):
    """A formatter for terminals: `12:00:00 INFO    batch_stored  records=3 seconds=0.01`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created)
        line = f"{moment:%H:%M:%S} {record.levelname:<7} {one_line(record.getMessage())}"
        if record.exc_info:
            for traced in self.formatException(record.exc_info).splitlines():
                line += f"\n  {one_line(traced)}"
        return line


class _JsonFormatter(logging.Formatter):
    """A formatter for log collectors: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        own = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            # Records of libraries have a message alone.
            "event": getattr(record, "event", None) or record.getMessage(),
        }
        # The record's own members come first, and a field of the same name does not replace them.
        entry: dict[str, Any] = own | getattr(record, "fields", {}) | own
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(entry, enc_hook=str).decode()
        except UnicodeEncodeError:
            # A lone surrogate, for example in a file name that is not UTF-8.
            return json.dumps(entry, default=str, skipkeys=True)
