"""Types of command-line arguments, for `add_argument(type=…)`."""

import argparse
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

_DURATION = re.compile(r"([1-9][0-9]{0,4})([sm])")
_AGE = re.compile(r"([1-9][0-9]{0,4})([dh])")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not _is_digits(text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(
                f'expected a whole number from {low} to {high}, not "{text}"'
            )
        return int(text)

    return parse


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not _is_digits(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f'expected a whole number of at least 1, not "{text}"')
    return int(text)


def port(text: str) -> int:
    """Parse a TCP port; 0 stands for a free one."""
    if not _is_digits(text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f'expected a port from 0 to 65535, not "{text}"')
    return int(text)


def seconds(text: str) -> float:
    """Parse a number of seconds greater than 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f'expected a number of seconds above 0, not "{text}"')
    return number


def duration(text: str) -> float:
    """Parse a number of seconds or minutes, such as 60s or 5m; return seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f'expected seconds or minutes, such as 60s or 5m, not "{text}"'
        )
    return int(match[1]) * (60 if match[2] == "m" else 1)


def age(text: str) -> timedelta:
    """Parse a number of days or hours, such as 90d or 12h."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f'expected days or hours, such as 90d or 12h, not "{text}"'
        )
    number = int(match[1])
    return timedelta(days=number) if match[2] == "d" else timedelta(hours=number)


def moment(text: str) -> datetime:
    """Parse an RFC 3339 time with an offset; return it in UTC."""
    try:
        parsed = msgspec.convert(text, datetime)
        if parsed.tzinfo is not None:
            return parsed.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(
        f'expected a time with an offset, such as 2026-01-31T23:59:59Z, not "{text}"'
    )


def _is_digits(text: str) -> bool:
    # Python parses no more than 4300 digits.
    return text.isascii() and text.isdigit() and len(text) < 100
