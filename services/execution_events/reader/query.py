"""The parameters of a request as one value, and page markers."""

import base64
import difflib
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote_plus, unquote_to_bytes, urlencode

import msgspec

from execution_events import events
from execution_events.bilingual import Lang
from execution_events.projection.body import Times
from execution_events.store.read.selection import Column, Position, Selection
from execution_events.wire import TIMESTAMP_FORMAT, parse_timestamp

LIMIT_MAX = 1000
QUERY_MAX_BYTES: Final = 8192
"""Limit on the query string, which the link to the next page repeats."""
VALUES_MAX: Final = 32
"""Limit on the values of one filter."""

_FILTERS: Mapping[str, Column] = {
    "type": "type",
    "reason": "reason",
    "elemType": "elem_type",
    "elemId": "elem_id",
    "actionName": "action_name",
}
_EXCLUDING_FILTERS: Mapping[str, Column] = {
    f"exclude{name[0].upper()}{name[1:]}": column for name, column in _FILTERS.items()
}
_SINGLE_PARAMETERS = (
    "limit",
    "marker",
    "order",
    "since",
    "until",
    "q",
    "lang",
    "times",
    "lastEventId",
)
_WATCH_PARAMETERS = frozenset((*_SINGLE_PARAMETERS, *_FILTERS, *_EXCLUDING_FILTERS))
_LIST_PARAMETERS = _WATCH_PARAMETERS - {"lastEventId"}
_OFFSET = re.compile(r"([+-][0-9]{2})([0-9]{2})\Z")
_LIMIT = re.compile(r"[1-9][0-9]{0,3}")

_MARKER_VERSION = b"\1"
_DIGEST_BYTES = 12
_MARKER_MAX_CHARACTERS = 1024
"""The longest name and namespace make 712."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_positions = msgspec.msgpack.Decoder(tuple[int, str, str])


class QueryError(ValueError):
    """Correct the parameter that the text names; the text is safe to display and to log."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """The events a request selects and their form; `limit` None is the whole list."""

    execution_id: str
    selection: Selection
    limit: int | None
    lang: Lang
    times: Times
    last_event_id: str | None = None
    parameters: tuple[tuple[str, str], ...]
    """As received, without the marker."""

    @property
    def digest(self) -> bytes:
        """A text equal for equivalent queries, whatever the execution and process."""
        content: tuple[object, ...] = (self.selection, self.limit, self.lang)
        return msgspec.json.encode(content if self.times == "second" else (*content, self.times))

    def marker_after(self, position: Position) -> str:
        """Return the marker of the page that follows the event at `position`."""
        moment, name, namespace = position
        content = msgspec.msgpack.encode(((moment - _EPOCH) // _MICROSECOND, name, namespace))
        return _marker(_marker_scope(self.execution_id, self.selection, self.lang), content)

    def link(self, marker: str) -> str:
        """Return a relative link to the next page (RFC 3986), valid behind any proxy."""
        return "?" + urlencode([*self.parameters, ("marker", marker)], quote_via=quote_plus)


def parse_query(execution_id: str, query_string: bytes, *, is_watch: bool = False) -> Query:
    """Return the query of a request; raises `QueryError` for any invalid query string."""
    known = _WATCH_PARAMETERS if is_watch else _LIST_PARAMETERS
    if len(query_string) > QUERY_MAX_BYTES:
        raise QueryError(f"query string: expected at most {QUERY_MAX_BYTES} bytes")
    pairs = tuple(_pairs(query_string))
    given: dict[str, list[str]] = defaultdict(list)
    for name, value in pairs:
        if name in _SINGLE_PARAMETERS and name in given:
            raise QueryError(f"{name}: expected at most once")
        if name not in known:
            raise QueryError(_unknown(name, known))
        given[name].append(value)
    once = {name: given[name][0] for name in _SINGLE_PARAMETERS if name in given}
    lang = _lang(once.get("lang"))
    selection = Selection(
        descending=_descending(once.get("order")),
        only=_filters(_FILTERS, given),
        exclude=_filters(_EXCLUDING_FILTERS, given),
        since=_time("since", once.get("since")),
        until=_time("until", once.get("until")),
        text=None if "q" not in once else _text("q", once["q"]),
    )
    if "marker" in once:
        position = _position(_marker_scope(execution_id, selection, lang), once["marker"])
        selection = msgspec.structs.replace(selection, after=position)
    return Query(
        execution_id=execution_id,
        selection=selection,
        limit=_limit(once.get("limit")),
        lang=lang,
        times=_times(once.get("times")),
        last_event_id=once.get("lastEventId"),
        parameters=tuple(pair for pair in pairs if pair[0] != "marker"),
    )


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


def _limit(value: str | None) -> int | None:
    if value is None:
        return None
    if not _LIMIT.fullmatch(value) or int(value) > LIMIT_MAX:
        raise QueryError(f"limit: expected a whole number from 1 to {LIMIT_MAX}")
    return int(value)


def _descending(value: str | None) -> bool:
    if value not in (None, "asc", "desc"):
        raise QueryError("order: expected asc or desc")
    return value == "desc"


def _lang(value: str | None) -> Lang:
    match value:
        case None:
            return "both"
        case "zh" | "en":
            return value
    raise QueryError("lang: expected zh or en")


def _times(value: str | None) -> Times:
    match value:
        case None:
            return "second"
        case "second" | "micro":
            return value
    raise QueryError("times: expected second or micro")


def _time(name: str, value: str | None) -> datetime | None:
    if value is None:
        return None
    # Generated clients write an offset without its colon.
    moment = parse_timestamp(_OFFSET.sub(r"\1:\2", value))
    if moment is None:
        raise QueryError(f"{name}: expected {TIMESTAMP_FORMAT}; write + as %2B")
    return moment


def _filters(
    names: Mapping[str, Column], given: Mapping[str, list[str]]
) -> tuple[tuple[Column, tuple[str, ...]], ...]:
    filters = []
    for name, column in names.items():
        values = given.get(name)
        if values:
            if len(values) > VALUES_MAX:
                raise QueryError(f"{name}: expected at most {VALUES_MAX} values")
            filters.append((column, tuple(sorted({_text(name, value) for value in values}))))
    return tuple(filters)


def _text(name: str, value: str) -> str:
    if not 1 <= len(value) <= events.TEXT_MAX_CHARACTERS or "\0" in value:
        raise QueryError(
            f"{name}: expected 1 to {events.TEXT_MAX_CHARACTERS} characters without NUL"
        )
    return value


def _marker_scope(execution_id: str, selection: Selection, lang: Lang) -> bytes:
    """Return what a marker is valid for; limit and times can change between pages."""
    return msgspec.json.encode((execution_id, msgspec.structs.replace(selection, after=None), lang))


def _marker(scope: bytes, content: bytes) -> str:
    # Unsigned: a forged position only narrows the events that the caller may read anyway. The
    # digest detects damage and markers of other queries.
    digest = hashlib.blake2b(scope + b"\0" + content, digest_size=_DIGEST_BYTES).digest()
    return base64.urlsafe_b64encode(_MARKER_VERSION + digest + content).rstrip(b"=").decode()


def _position(scope: bytes, marker: str) -> Position:
    invalid = QueryError(
        "marker: expected a marker returned for this execution, these filters, order and lang"
    )
    if len(marker) > _MARKER_MAX_CHARACTERS:
        raise invalid
    try:
        decoded = base64.b64decode(marker + "=" * (-len(marker) % 4), b"-_", validate=True)
        content = decoded[1 + _DIGEST_BYTES :]
        # Refuses other base64 of the same bytes too.
        if _marker(scope, content) != marker:
            raise invalid
        microseconds, name, namespace = _positions.decode(content)
        moment = _EPOCH + microseconds * _MICROSECOND
    except (ValueError, msgspec.MsgspecError, OverflowError):
        raise invalid from None
    if moment < events.TIMESTAMP_MIN or "\0" in name or "\0" in namespace:
        raise invalid
    return Position(moment, name, namespace)


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
