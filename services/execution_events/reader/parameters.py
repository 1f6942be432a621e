"""The query string of a list: its parameters, their refusal, and page markers."""

import base64
import difflib
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Self
from urllib.parse import quote_plus, unquote_to_bytes, urlencode

import msgspec

from execution_events import events
from execution_events.bilingual import Lang
from execution_events.projection.body import Times
from execution_events.wire import TIMESTAMP_FORMAT, parse_timestamp

LIMIT_MAX = 1000
QUERY_MAX_BYTES: Final = 8192
"""Limit on the query string, which the link to the next page repeats."""
VALUES_MAX: Final = 32
"""Limit on the values of one filter."""

_OFFSET = re.compile(r"([+-][0-9]{2})([0-9]{2})\Z")
_LIMIT = re.compile(r"[1-9][0-9]{0,3}")

_MARKER_VERSION = b"\1"
_DIGEST_BYTES = 12
_MARKER_MAX_CHARACTERS = 1024
"""The longest name and namespace make 712."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Position = tuple[datetime, str, str]
"""The key of an item in the order of its list; times are exact to the microsecond."""

_positions = msgspec.msgpack.Decoder(tuple[int, str, str])


class QueryError(ValueError):
    """Correct the parameter that the text names; the text is safe to display and to log."""


class Parameters(NamedTuple):
    """The parameters of a request; every method raises `QueryError` for an invalid value."""

    pairs: tuple[tuple[str, str], ...]
    """As received."""
    values: Mapping[str, list[str]]

    @classmethod
    def parse(cls, query_string: bytes, known: Collection[str], repeated: Collection[str]) -> Self:
        """Return the parameters of a query string, which must be `known`.

        Only those in `repeated` may occur more than once.
        """
        if len(query_string) > QUERY_MAX_BYTES:
            raise QueryError(f"query string: expected at most {QUERY_MAX_BYTES} bytes")
        pairs = tuple(_pairs(query_string))
        values: dict[str, list[str]] = defaultdict(list)
        for name, value in pairs:
            if name not in known:
                raise QueryError(_unknown(name, known))
            if name in values and name not in repeated:
                raise QueryError(f"{name}: expected at most once")
            values[name].append(value)
        return cls(pairs, values)

    def one(self, name: str) -> str | None:
        """Return the value of a parameter that occurs at most once, unchecked."""
        return self.values[name][0] if name in self.values else None

    def text(self, name: str) -> str | None:
        """Return a text without NUL."""
        value = self.one(name)
        return None if value is None else _text(name, value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return the distinct values of a filter, sorted; none if it is absent."""
        values = self.values.get(name)
        if values is None:
            return ()
        if len(values) > VALUES_MAX:
            raise QueryError(f"{name}: expected at most {VALUES_MAX} values")
        return tuple(sorted({_text(name, value) for value in values}))

    def limit(self) -> int | None:
        value = self.one("limit")
        if value is None:
            return None
        if not _LIMIT.fullmatch(value) or int(value) > LIMIT_MAX:
            raise QueryError(f"limit: expected a whole number from 1 to {LIMIT_MAX}")
        return int(value)

    def descending(self, *, default: bool) -> bool:
        match self.one("order"):
            case None:
                return default
            case "asc" | "desc" as order:
                return order == "desc"
        raise QueryError("order: expected asc or desc")

    def lang(self) -> Lang:
        match self.one("lang"):
            case None:
                return "both"
            case "zh" | "en" as lang:
                return lang
        raise QueryError("lang: expected zh or en")

    def times(self) -> Times:
        match self.one("times"):
            case None:
                return "second"
            case "second" | "micro" as times:
                return times
        raise QueryError("times: expected second or micro")

    def moment(self, name: str) -> datetime | None:
        """Return a time, cut to the microsecond."""
        value = self.one(name)
        if value is None:
            return None
        # Generated clients write an offset without its colon.
        moment = parse_timestamp(_OFFSET.sub(r"\1:\2", value))
        if moment is None:
            raise QueryError(f"{name}: expected {TIMESTAMP_FORMAT}; write + as %2B")
        return moment

    def link(self, marker: str) -> str:
        """Return a relative link to the page at `marker` (RFC 3986), valid behind any proxy."""
        pairs = [pair for pair in self.pairs if pair[0] != "marker"]
        return "?" + urlencode([*pairs, ("marker", marker)], quote_via=quote_plus)


def encode_marker(scope: bytes, position: Position) -> str:
    """Return the marker of the page that follows the item at `position`.

    `scope` is what the marker is valid for.
    """
    moment, *names = position
    return _marker(scope, msgspec.msgpack.encode(((moment - _EPOCH) // _MICROSECOND, *names)))


def decode_marker(scope: bytes, marker: str, of: str) -> Position:
    """Return the position of a marker, which must be one of this `scope`.

    `of` names it for people. Raises `QueryError`.
    """
    invalid = QueryError(f"marker: expected a marker returned for {of}")
    if len(marker) > _MARKER_MAX_CHARACTERS:
        raise invalid
    try:
        decoded = base64.b64decode(marker + "=" * (-len(marker) % 4), b"-_", validate=True)
        content = decoded[1 + _DIGEST_BYTES :]
        # Refuses other base64 of the same bytes too.
        if _marker(scope, content) != marker:
            raise invalid
        microseconds, *names = _positions.decode(content)
        moment = _EPOCH + microseconds * _MICROSECOND
    except (ValueError, msgspec.MsgspecError, OverflowError):
        raise invalid from None
    if moment < events.TIMESTAMP_MIN or any("\0" in name for name in names):
        raise invalid
    return moment, names[0], names[1]


def _marker(scope: bytes, content: bytes) -> str:
    # Unsigned: a forged position only narrows the list that the caller may read anyway. The digest
    # detects damage and markers of other queries.
    digest = hashlib.blake2b(scope + b"\0" + content, digest_size=_DIGEST_BYTES).digest()
    return base64.urlsafe_b64encode(_MARKER_VERSION + digest + content).rstrip(b"=").decode()


def _pairs(query_string: bytes) -> Iterable[tuple[str, str]]:
    for part in query_string.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            try:
                yield _unescaped(name).decode(), _unescaped(value).decode()
            except UnicodeDecodeError:
                shown = _quoted(_unescaped(name).decode("utf-8", "replace"))
                raise QueryError(f"parameter {shown}: expected UTF-8") from None


def _unescaped(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


def _text(name: str, value: str) -> str:
    if not 1 <= len(value) <= events.TEXT_MAX_CHARACTERS or "\0" in value:
        raise QueryError(
            f"{name}: expected 1 to {events.TEXT_MAX_CHARACTERS} characters without NUL"
        )
    return value


def _unknown(name: str, known: Iterable[str]) -> str:
    """Return the error text for an unknown parameter, with the known one that is most like it."""
    by_lower = {other.lower(): other for other in known}
    # A client's underscores and dashes, as in `elem_id`.
    folded = re.sub("[-_]", "", name[:64]).lower()
    nearest = difflib.get_close_matches(folded, by_lower, n=1)
    hint = f"; did you mean {by_lower[nearest[0]]}?" if nearest else ""
    return f"unknown parameter {_quoted(name)}{hint}"


def _quoted(parameter: str) -> str:
    """Return `parameter` for an error text: of bounded length, quoted, in printable ASCII."""
    return json.dumps(parameter[:64])
