"""The parameters of a list of executions as one value."""

import msgspec

from execution_events.bilingual import Lang
from execution_events.events import EXECUTION_ID, EXECUTION_ID_FORMAT
from execution_events.projection.body import Times
from execution_events.projection.states import STATES
from execution_events.reader.parameters import Parameters, QueryError, decode_marker, encode_marker
from execution_events.store.read.executions import ExecutionPosition, ExecutionSelection

LIMIT_DEFAULT = 100

_REPEATED_PARAMETERS = frozenset({"executionId", "state", "namespace", "objectName"})
_PARAMETERS = _REPEATED_PARAMETERS | {
    *("limit", "marker", "order", "since", "until", "lang", "times")
}


class ExecutionQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The executions that a request selects, and their form."""

    selection: ExecutionSelection
    limit: int
    lang: Lang
    times: Times
    parameters: Parameters

    @property
    def digest(self) -> bytes:
        """A text equal for equivalent queries, whatever the process."""
        return msgspec.json.encode((self.selection, self.limit, self.lang, self.times))

    def marker_after(self, position: ExecutionPosition) -> str:
        """Return the marker of the page that follows the execution at `position`."""
        return encode_marker(_marker_scope(self.selection, self.lang), position)


def parse_execution_query(query_string: bytes) -> ExecutionQuery:
    """Return the query of a request; raises `QueryError` for any invalid query string."""
    parameters = Parameters.parse(query_string, _PARAMETERS, _REPEATED_PARAMETERS)
    lang = parameters.lang()
    execution_ids, states = parameters.texts("executionId"), parameters.texts("state")
    if not all(map(EXECUTION_ID.fullmatch, execution_ids)):
        raise QueryError(f"executionId: expected {EXECUTION_ID_FORMAT}")
    if not set(STATES).issuperset(states):
        raise QueryError(f"state: expected {', '.join(STATES[:-1])} or {STATES[-1]}")
    selection = ExecutionSelection(
        descending=parameters.descending(default=True),
        execution_ids=execution_ids,
        states=states,
        namespaces=parameters.texts("namespace"),
        object_names=parameters.texts("objectName"),
        since=parameters.moment("since"),
        until=parameters.moment("until"),
    )
    marker = parameters.one("marker")
    if marker is not None:
        scope = _marker_scope(selection, lang)
        position = decode_marker(scope, marker, "these filters, order and lang")
        selection = msgspec.structs.replace(selection, after=ExecutionPosition(*position))
    return ExecutionQuery(
        selection=selection,
        limit=parameters.limit() or LIMIT_DEFAULT,
        lang=lang,
        times=parameters.times(),
        parameters=parameters,
    )


def _marker_scope(selection: ExecutionSelection, lang: Lang) -> bytes:
    """Return what a marker is valid for; limit and times can change between pages."""
    return msgspec.json.encode((msgspec.structs.replace(selection, after=None), lang))
