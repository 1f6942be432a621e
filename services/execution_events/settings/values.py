"""Parsers of the values of settings; each raises a ValueError that says what was expected."""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

# Stricter than urlsplit, whose errors show the password, and which ends it at any / ? or #.
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::[0-9]+)?"
_DATABASE_URL = re.compile(
    r"postgres(?:ql)?://(?:[^@/?#\[\]\s\x7f-\U0010ffff]*@)?"
    rf"({_HOST}(?:,{_HOST})*)(?:/[^@?#\s]*)?(?:\?[^@#\s]*)?"
)

_BROKER = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]+)?")
_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")

_URL = re.compile(r"[a-z]+://[A-Za-z0-9._:\[\]-]+(?:/[!$-;=?-Z_a-z~]*)?(?:\?[!$-;=?-Z_a-z~]*)?")
"""Without user, password and fragment."""

_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?")


def text(value: str) -> str:
    """Return printable text of at least one character."""
    if not value or not value.isprintable():
        raise ValueError("expected printable text")
    return value


def number(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `low` to `high`."""

    def parse(value: str) -> int:
        digits = value.isascii() and value.isdigit() and len(value) < 100
        if not digits or not low <= int(value) <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return int(value)

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser that accepts only the choices."""

    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return value

    return parse


def brokers(value: str) -> str:
    """Return the addresses of Kafka brokers."""
    for address in value.split(","):
        if not _BROKER.fullmatch(address.strip()) or not _has_port(address.strip()):
            raise ValueError("expected host:port,host:port,… with ports from 1 to 65535")
    return value


def _has_port(address: str) -> bool:
    """Return False for a port that does not exist; an address without one has a default."""
    port = address.rpartition(":")[2]
    return not port.isdigit() or ":" not in address or 1 <= int(port[:6]) <= 65535


def topic(value: str) -> str:
    """Return a name that Kafka accepts for a topic."""
    if not _TOPIC.fullmatch(value):
        raise ValueError("expected 1 to 249 of the characters A-Z a-z 0-9 . _ -, not . or ..")
    return value


def database_url(value: str) -> str:
    """Return the URL of a PostgreSQL database, in which no character is ambiguous."""
    match = _DATABASE_URL.fullmatch(value)
    if match is None or not all(map(_has_port, match[1].split(","))):
        raise ValueError(
            "expected postgresql://user:password@host:port/database, with a port from 1 to 65535, "
            "and / ? # @ [ ] and non-ASCII characters of user and password percent-encoded"
        )
    return value


def jwks_url(value: str) -> str:
    """Return an HTTPS URL, or an HTTP URL of this machine."""
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    safe = url.scheme == "https" or (
        url.scheme == "http" and url.hostname in ("127.0.0.1", "::1", "localhost")
    )
    if not (safe and url.hostname and _URL.fullmatch(value)) or port == 0:
        raise ValueError(
            "expected https://host/path, or http:// to 127.0.0.1, ::1 or localhost: keys fetched "
            "over plain HTTP could be replaced on the network"
        )
    return value


def origins(value: str) -> str:
    """Return comma-separated origins, as browsers send them, without spaces."""
    result = [origin.strip() for origin in value.split(",")]
    if not all(_ORIGIN.fullmatch(origin) for origin in result):
        raise ValueError(
            "expected https://host or https://host:port, in lower case and without a path,"
            " separated by commas"
        )
    return ",".join(result)
