"""Logs: one line for each record, with any content."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from execution_events.logs import Logger, configure_logging

log = Logger("execution_events.tests")
library = logging.getLogger("library.of.others")


class Unknown:
    """An object of a class that no encoder knows."""

    def __repr__(self) -> str:
        return "<unknown>"


HOSTILE = [
    "a\n12:00:00 ERROR   forged",
    'a\r\n{"event":"forged"}',
    "\x00\x1b[31m\x7f\x85\u2028\u2029\u202e",
    '"}\\',
    "\udcff",
    "执行成功 😀",
    "",
]
ODD: list[Any] = [
    None,
    True,
    2**70,
    float("nan"),
    b"\xff\n",
    ("a", 1),
    {"a": {"b": "c\nd"}},
    {("a", 1): 2},
    {"a"},
    datetime(2026, 1, 1, tzinfo=UTC),
    timedelta(seconds=1),
    ValueError("a\nb"),
    Unknown(),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    package = logging.getLogger("execution_events")
    before = logging.root.handlers, logging.root.level, package.level
    yield
    logging.root.handlers, level, package_level = before
    logging.root.setLevel(level)
    package.setLevel(package_level)


def configured(log_format: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(log_format, level, stream)
    return stream


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    assert stream.getvalue().endswith("\n")
    return [json.loads(line) for line in stream.getvalue()[:-1].split("\n")]


def test_a_record_is_a_json_object_with_its_fields() -> None:
    stream = configured("json")
    before = datetime.now(UTC)
    log.info("batch_stored", partition=0, records=3)
    [entry] = entries(stream)
    time = datetime.fromisoformat(entry.pop("time"))
    assert before - timedelta(milliseconds=1) <= time <= datetime.now(UTC)
    assert entry == {
        "level": "info",
        "logger": "execution_events.tests",
        "event": "batch_stored",
        "partition": 0,
        "records": 3,
    }


@pytest.mark.parametrize("value", HOSTILE + ODD, ids=ascii)
def test_a_json_record_is_one_line_with_any_field_value(value: object) -> None:
    stream = configured("json")
    log.info("event", field=value)
    library.warning("%s", value)
    one, other = entries(stream)
    assert one["event"] == "event"
    assert "field" in one
    assert other["logger"] == "library.of.others"


@pytest.mark.parametrize("value", [text for text in HOSTILE if text != "\udcff"], ids=ascii)
def test_json_preserves_text(value: str) -> None:
    stream = configured("json")
    log.info("event", field=value)
    [entry] = entries(stream)
    assert entry["field"] == value


def test_a_field_cannot_replace_a_member_of_the_record() -> None:
    stream = configured("json")
    log.error("event", level="info", logger="other", time="never")
    [entry] = entries(stream)
    assert (entry["level"], entry["logger"]) == ("error", "execution_events.tests")
    assert datetime.fromisoformat(entry["time"])


def test_a_json_line_contains_the_traceback() -> None:
    stream = configured("json")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("failed", attempt=1)
    [entry] = entries(stream)
    assert (entry["level"], entry["event"], entry["attempt"]) == ("error", "failed", 1)
    assert entry["traceback"].startswith("Traceback ")
    assert entry["traceback"].endswith("ValueError: first\nsecond")


def test_a_text_record_shows_time_level_event_and_fields() -> None:
    stream = configured("text")
    log.warning("database_unavailable", error="refused", attempts=2)
    time, rest = stream.getvalue().split(" ", 1)
    assert datetime.strptime(time, "%H:%M:%S")
    assert rest == "WARNING database_unavailable  error=refused attempts=2\n"


@pytest.mark.parametrize("value", HOSTILE + ODD, ids=ascii)
def test_a_text_record_is_one_line_with_any_field_value(value: object) -> None:
    stream = configured("text")
    log.info("event", field=value)
    library.warning("%s", value)
    one, other = stream.getvalue().splitlines()
    assert one[:8].count(":") == other[:8].count(":") == 2
    assert one.isprintable()
    assert other.isprintable()


def test_an_exception_text_cannot_forge_a_record() -> None:
    stream = configured("text")
    try:
        raise ValueError("a\n12:00:00 INFO    forged")
    except ValueError:
        log.exception("failed")
    first, *traceback = stream.getvalue().splitlines()
    assert first.endswith("ERROR   failed")
    assert traceback
    assert not [line for line in traceback if line.startswith("12:00:00")]


def test_printable_text_is_not_escaped() -> None:
    stream = configured("text")
    log.info("event", reason="执行成功##SuccessfulFinish 😀", path=r"C:\n")
    assert r"reason=执行成功##SuccessfulFinish 😀 path=C:\n" in stream.getvalue()


@pytest.mark.parametrize(
    ("level", "logged"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_records_below_the_level_are_dropped(level: str, logged: list[str]) -> None:
    stream = configured("json", level)
    for write in (log.debug, log.info, log.warning, log.error):
        write("event")
    assert [entry["level"] for entry in entries(stream)] == logged


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_libraries_log_from_level_warning(level: str) -> None:
    stream = configured("json", level)
    library.debug("debug")
    library.info("info")
    library.warning("%d of %d", 1, 2)
    library.error("error")
    assert [entry["event"] for entry in entries(stream)] == ["1 of 2", "error"]


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    stream = configured("auto")
    log.info("event")
    assert entries(stream)
    terminal = Terminal()
    configure_logging("auto", "info", terminal)
    log.info("event")
    assert terminal.getvalue().endswith("INFO    event\n")


def test_a_second_configuration_replaces_the_first() -> None:
    before, stream = configured("json"), configured("json")
    log.info("event")
    assert before.getvalue() == ""
    assert len(entries(stream)) == 1
