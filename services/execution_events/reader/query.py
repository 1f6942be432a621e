"""The parameters of a list of events as one value."""

from collections.abc import Mapping

import msgspec

from execution_events.bilingual import Lang
from execution_events.projection.body import Times
from execution_events.reader.parameters import Parameters, decode_marker, encode_marker
from execution_events.store.read.selection import Column, Position, Selection

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
_REPEATED_PARAMETERS = frozenset((*_FILTERS, *_EXCLUDING_FILTERS))
_LIST_PARAMETERS = _REPEATED_PARAMETERS | {
    *("limit", "marker", "order", "since", "until", "q", "lang", "times")
}
_WATCH_PARAMETERS = _LIST_PARAMETERS | {"lastEventId"}


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """The events a request selects and their form; `limit` None is the whole list."""

    execution_id: str
    selection: Selection
    limit: int | None
    lang: Lang
    times: Times
    last_event_id: str | None = None
    parameters: Parameters

    @property
    def digest(self) -> bytes:
        """A text equal for equivalent queries, whatever the execution and process."""
        content: tuple[object, ...] = (self.selection, self.limit, self.lang)
        return msgspec.json.encode(content if self.times == "second" else (*content, self.times))

    def marker_after(self, position: Position) -> str:
        """Return the marker of the page that follows the event at `position`."""
        return encode_marker(_marker_scope(self.execution_id, self.selection, self.lang), position)

    def link(self, marker: str) -> str:
        """Return a relative link to the next page."""
        return self.parameters.link(marker)


def parse_query(execution_id: str, query_string: bytes, *, is_watch: bool = False) -> Query:
    """Return the query of a request; raises `QueryError` for any invalid query string."""
    known = _WATCH_PARAMETERS if is_watch else _LIST_PARAMETERS
    parameters = Parameters.parse(query_string, known, _REPEATED_PARAMETERS)
    lang = parameters.lang()
    selection = Selection(
        descending=parameters.descending(default=False),
        only=_filters(_FILTERS, parameters),
        exclude=_filters(_EXCLUDING_FILTERS, parameters),
        since=parameters.moment("since"),
        until=parameters.moment("until"),
        text=parameters.text("q"),
    )
    marker = parameters.one("marker")
    if marker is not None:
        scope = _marker_scope(execution_id, selection, lang)
        position = decode_marker(scope, marker, "this execution, these filters, order and lang")
        selection = msgspec.structs.replace(selection, after=Position(*position))
    return Query(
        execution_id=execution_id,
        selection=selection,
        limit=parameters.limit(),
        lang=lang,
        times=parameters.times(),
        last_event_id=parameters.one("lastEventId"),
        parameters=parameters,
    )


def _filters(
    names: Mapping[str, Column], parameters: Parameters
) -> tuple[tuple[Column, tuple[str, ...]], ...]:
    return tuple(
        (column, parameters.texts(name))
        for name, column in names.items()
        if name in parameters.values
    )


def _marker_scope(execution_id: str, selection: Selection, lang: Lang) -> bytes:
    """Return what a marker is valid for; limit and times can change between pages."""
    return msgspec.json.encode((execution_id, msgspec.structs.replace(selection, after=None), lang))
