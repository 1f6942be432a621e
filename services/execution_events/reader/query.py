"""A request's parameters as one value, and the markers that lead from page to page."""

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote_plus, unquote_to_bytes, urlencode

import msgspec

from execution_events import events
from execution_events.bilingual import Lang
from execution_events.store.read.selection import Column, Position, Selection
from execution_events.wire import TIMESTAMP_FORMAT, parse_timestamp

LIMIT_MAX = 1000
QUERY_MAX_BYTES: Final = 8192
"""The longest query string; its values are sent back in the link to the next page."""
VALUES_MAX: Final = 32
"""The most values of one filter."""


_COLUMNS: Mapping[str, Column] = {
    "type": "type",
    "reason": "reason",
    "elemType": "elem_type",
    "elemId": "elem_id",
    "actionName": "action_name",
}
_EXCLUDED: Mapping[str, Column] = {
    f"exclude{name[0].upper()}{name[1:]}": column for name, column in _COLUMNS.items()
}
_ONCE = ("limit", "marker", "order", "since", "until", "q", "lang")
_LIMIT = re.compile(r"[1-9][0-9]{0,3}")

_MARKER_VERSION = b"\1"
_DIGEST_BYTES = 12
_MARKER_MAX = 1024
"""Characters; the longest name and namespace make 712."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_positions = msgspec.msgpack.Decoder(tuple[int, str, str])


class QueryError(ValueError):
    """Correct the parameter that the text names; the text is safe to show and to log."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks for; `limit` None is the whole list."""

    execution_id: str
    selection: Selection
    limit: int | None
    lang: Lang
    rest: tuple[tuple[str, str], ...]
    """The parameters as they came, without the marker."""

    @property
    def digest(self) -> bytes:
        """The same for queries of one meaning, on any execution, in any process."""
        return msgspec.json.encode((self.selection, self.limit, self.lang))

    def marker_after(self, position: Position) -> str:
        """The marker of the page that follows what stands at `position`."""
        place, name, namespace = position
        content = msgspec.msgpack.encode(((place - _EPOCH) // _MICROSECOND, name, namespace))
        return _marker(_book(self.execution_id, self.selection, self.lang), content)

    def link(self, marker: str) -> str:
        """The next page relative to this one (RFC 3986): it holds behind any proxy."""
        return "?" + urlencode([*self.rest, ("marker", marker)], quote_via=quote_plus)


def parse_query(execution_id: str, query_string: bytes) -> Query:
    """The query of a request; raises `QueryError` for every other string of bytes."""
    if len(query_string) > QUERY_MAX_BYTES:
        raise QueryError(f"the query string: expected at most {QUERY_MAX_BYTES} bytes")
    pairs = tuple(_pairs(query_string))
    given: dict[str, list[str]] = defaultdict(list)
    for name, value in pairs:
        if name in _ONCE and name in given:
            raise QueryError(f"{name}: given twice")
        if name not in _ONCE and name not in _COLUMNS and name not in _EXCLUDED:
            raise QueryError(f"{_quoted(name)}: there is no such parameter")
        given[name].append(value)
    once = {name: given[name][0] for name in _ONCE if name in given}
    lang = _lang(once.get("lang"))
    selection = Selection(
        descending=_descending(once.get("order")),
        only=_filters(_COLUMNS, given),
        exclude=_filters(_EXCLUDED, given),
        since=_time("since", once.get("since")),
        until=_time("until", once.get("until")),
        text=None if "q" not in once else _text("q", once["q"]),
    )
    if "marker" in once:
        position = _position(_book(execution_id, selection, lang), once["marker"])
        selection = msgspec.structs.replace(selection, after=position)
    return Query(
        execution_id=execution_id,
        selection=selection,
        limit=_limit(once.get("limit")),
        lang=lang,
        rest=tuple(pair for pair in pairs if pair[0] != "marker"),
    )


def _pairs(query_string: bytes) -> Iterable[tuple[str, str]]:
    for part in query_string.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            shown = _quoted(_unescaped(name).decode("utf-8", "replace"))
            try:
                yield _unescaped(name).decode(), _unescaped(value).decode()
            except UnicodeDecodeError:
                raise QueryError(f"{shown}: expected UTF-8") from None


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


def _time(name: str, value: str | None) -> datetime | None:
    if value is None:
        return None
    moment = parse_timestamp(value)
    if moment is None:
        raise QueryError(f"{name}: expected {TIMESTAMP_FORMAT}; a + is written %2B")
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


def _book(execution_id: str, selection: Selection, lang: Lang) -> bytes:
    """What a marker is bound to: all but the limit, which may change from page to page."""
    return msgspec.json.encode((execution_id, msgspec.structs.replace(selection, after=None), lang))


def _marker(book: bytes, content: bytes) -> str:
    # No secret: a forged position is one more condition on what the caller may read anyway. The
    # digest keeps a marker from being used with another query, and damage from being a position.
    digest = hashlib.blake2b(book + b"\0" + content, digest_size=_DIGEST_BYTES).digest()
    return base64.urlsafe_b64encode(_MARKER_VERSION + digest + content).rstrip(b"=").decode()


def _position(book: bytes, marker: str) -> Position:
    wrong = QueryError(
        "marker: expected one that came with this execution, these filters, order and lang"
    )
    if len(marker) > _MARKER_MAX:
        raise wrong
    try:
        decoded = base64.b64decode(marker + "=" * (-len(marker) % 4), b"-_", validate=True)
        content = decoded[1 + _DIGEST_BYTES :]
        # Also what decodes to the same bytes is another marker.
        if _marker(book, content) != marker:
            raise wrong
        microseconds, name, namespace = _positions.decode(content)
        place = _EPOCH + microseconds * _MICROSECOND
    except (ValueError, msgspec.MsgspecError, OverflowError):
        raise wrong from None
    if place < events.TIMESTAMP_MIN or "\0" in name or "\0" in namespace:
        raise wrong
    return Position(place, name, namespace)


def _quoted(parameter: str) -> str:
    """`parameter` as it may stand in a message: bounded, and without control characters."""
    return ascii(parameter[:64])
