"""Logs: constant event names with fields, for a person on a terminal and a machine elsewhere."""

import json
import logging
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec


class Logger:
    """A logger whose messages are constant event names; what varies stands in fields."""

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
        """Like `error`, with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, event, fields, exc_info=True)

    def _log(self, level: int, event: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        self._logger.log(level, event, extra={"fields": fields}, exc_info=exc_info)


def configure_logging(log_format: str, level: str, stream: TextIO) -> None:
    """Send all logs of the process to `stream`, those of libraries from warnings on.

    `log_format` is "text", "json", or "auto": text where `stream` is a terminal, else JSON.
    """
    as_text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_TextFormatter() if as_text else _JsonFormatter())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("execution_events").setLevel(level.upper())


class _TextFormatter(logging.Formatter):
    """`12:00:00 INFO  batch stored  records=3 partition=0`"""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created)
        line = f"{moment:%H:%M:%S} {record.levelname:<7} {_one_line(record.getMessage())}"
        fields = getattr(record, "fields", {})
        if fields:
            line += "  " + " ".join(f"{k}={_one_line(str(v))}" for k, v in fields.items())
        if record.exc_info:
            for traced in self.formatException(record.exc_info).splitlines():
                line += f"\n  {_one_line(traced)}"
        return line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        own = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        # A field of the same name does not take the place of what is the record's own.
        entry: dict[str, Any] = own | getattr(record, "fields", {}) | own
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(entry, enc_hook=str).decode()
        except UnicodeEncodeError:
            # A lone surrogate, as in the name of a file that is not UTF-8.
            return json.dumps(entry, default=str, skipkeys=True)


def _one_line(text: str) -> str:
    """`text` without line breaks and control characters, which could forge a line of the log."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
