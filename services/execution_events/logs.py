"""Logs: constant event names with fields, as text on a terminal and as JSON elsewhere."""

import json
import logging
from datetime import UTC, datetime
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
        self._logger.log(level, event, extra={"fields": fields}, exc_info=exc_info)


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


class _TextFormatter(logging.Formatter):
    """A formatter for terminals: `12:00:00 INFO    batch_stored  records=3 seconds=0.01`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created)
        line = f"{moment:%H:%M:%S} {record.levelname:<7} {one_line(record.getMessage())}"
        fields = getattr(record, "fields", {})
        if fields:
            line += "  " + " ".join(f"{k}={one_line(str(v))}" for k, v in fields.items())
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
            "event": record.getMessage(),
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
