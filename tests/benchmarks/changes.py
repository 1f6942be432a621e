"""Changes of watched executions and the messages that each watcher must get. Pure functions."""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec

from execution_events.events import NORMAL, WARNING, Occurrence
from tests.benchmarks.watchers import Note, Seen
from tests.benchmarks.workload import BEGUN, occurrence

LISTED = 20
"""Events of an execution before the first change."""
NEW = 5
"""Every fifth change of an execution is a new event."""
_STRIDE = 7
"""Between the positions of two recurring events; shares no divisor with `LISTED`."""
_DELAY = timedelta(hours=1)
"""From the executions' beginning to the first change."""


class Filter(NamedTuple):
    """A filter of the API and its equivalent in Python."""

    query: str
    matches: Callable[[Occurrence], bool]


EVERYTHING = Filter("", lambda _: True)
WARNINGS = Filter("type=Warning", lambda event: event.type == WARNING)
ELEMENT = Filter("elemId=job-1-init", lambda event: event.elem_id == "job-1-init")
FILTERS = (EVERYTHING, EVERYTHING, EVERYTHING, WARNINGS, ELEMENT)
"""The filters of an execution's watchers, in turn."""


class Change(NamedTuple):
    """A record stored in a transaction of its own, and its event before and after."""

    execution: int
    record: Occurrence
    before: Occurrence | None
    after: Occurrence


class Commit(NamedTuple):
    """The begin and the end of a change's transaction, on the monotonic clock."""

    begun: float
    ended: float


class Watcher(NamedTuple):
    """A client that watches one execution through one filter."""

    execution: int
    filter: Filter

    @property
    def path(self) -> str:
        query = f"?{self.filter.query}" if self.filter.query else ""
        return f"/v1/executions/{execution_id(self.execution)}/events{query}"


@dataclass
class Judgement:
    """Seconds from the commit to the message, by filter, and violations."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    missed: list[str] = field(default_factory=list)
    """Changes that a watcher did not receive."""
    different: list[str] = field(default_factory=list)
    """Watchers whose final view differs from the list."""
    unordered: list[str] = field(default_factory=list)
    """Watchers without a first reset or an id, or with a count that went down."""
    ended: list[str] = field(default_factory=list)
    """Watchers whose stream ended, with the cause."""
    resets: int = 0
    """Without the first of each watcher."""
    needless: int = 0
    """Messages that report no change."""


def execution_id(number: int) -> str:
    """Return the id of an execution."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"changes:{number}"))


def watchers(number: int, executions: int) -> list[Watcher]:
    """Return `number` watchers, spread evenly over the executions."""
    return [
        Watcher(each % executions, FILTERS[each // executions % len(FILTERS)])
        for each in range(number)
    ]


def listed(execution: int) -> list[Occurrence]:
    """Return the events of an execution before the first change."""
    return [_event(execution, position) for position in range(LISTED)]


def _event(execution: int, position: int) -> Occurrence:
    type_ = WARNING if position % 4 == 1 else NORMAL
    return occurrence(execution_id(execution), position, type_=type_)


def changes(number: int, executions: int) -> list[Change]:
    """Return `number` changes: each execution in turn gets a recurrence or a new event.

    An event changes again only after `LISTED` changes of its execution, so that every watcher can
    receive each change. Its type may change, so that it starts or ceases to match a filter.
    """
    states = {
        (execution, position): event
        for execution in range(executions)
        for position, event in enumerate(listed(execution))
    }
    found = []
    for each in range(number):
        turn, execution = divmod(each, executions)
        position = LISTED + turn // NEW if turn % NEW == NEW - 1 else turn * _STRIDE % LISTED
        moment = BEGUN + _DELAY + timedelta(seconds=each)
        record = msgspec.structs.replace(
            _event(execution, position),
            first_timestamp=moment,
            last_timestamp=moment,
            type=WARNING if (position + turn) % 3 == 0 else NORMAL,
        )
        before = states.get((execution, position))
        after = record
        if before is not None:
            after = msgspec.structs.replace(
                record, first_timestamp=before.first_timestamp, count=before.count + 1
            )
        states[execution, position] = after
        found.append(Change(execution, record, before, after))
    return found


def due(watcher: Watcher, change: Change) -> bool:
    """Return true if a watcher must receive a change."""
    matched = change.before is not None and watcher.filter.matches(change.before)
    return watcher.execution == change.execution and (
        matched or watcher.filter.matches(change.after)
    )


def judge(
    watching: Sequence[Watcher],
    seen: Sequence[Seen],
    changed: Sequence[Change],
    commits: Sequence[Commit],
    lists: Mapping[str, Mapping[str, Any]],
) -> Judgement:
    """Compare each watcher's messages with the changes, and its view with the final `lists`."""
    judgement = Judgement()
    by_execution: dict[int, list[tuple[Change, Commit]]] = defaultdict(list)
    for change, commit in zip(changed, commits, strict=True):
        by_execution[change.execution].append((change, commit))
    for watcher, found in zip(watching, seen, strict=True):
        notes: dict[str, list[Note]] = defaultdict(list)
        for note in found.notes:
            notes[note.name].append(note)
        received = 0
        for change, commit in by_execution[watcher.execution]:
            if not due(watcher, change):
                continue
            gone = not watcher.filter.matches(change.after)
            first = _first_report(notes[change.after.name], change.after.count, commit.begun, gone)
            if first is None:
                judgement.missed.append(
                    f"{watcher.path}: {change.after.name}, count {change.after.count}"
                )
            else:
                received += 1
                latency = max(0, first.moment - commit.ended)
                judgement.latencies[watcher.filter.query].append(latency)
        _judge_end(judgement, watcher, found, lists[watcher.path])
        initial = sum(map(watcher.filter.matches, listed(watcher.execution))) * found.resets
        judgement.needless += max(0, len(found.notes) - received - initial)
    return judgement


def _first_report(notes: Iterable[Note], count: int, begun: float, gone: bool) -> Note | None:
    """Return the first note that reports a change or a later one of the same event."""
    for note in notes:
        if note.times >= count + gone or (gone and not note.times and note.moment >= begun):
            return note
    return None


def _judge_end(
    judgement: Judgement, watcher: Watcher, found: Seen, expected: Mapping[str, Any]
) -> None:
    judgement.resets += max(0, found.resets - 1)
    if {name: msgspec.json.decode(data) for name, data in found.view.items()} != expected:
        judgement.different.append(watcher.path)
    if not found.began_with_reset or found.went_back or not found.ids:
        judgement.unordered.append(watcher.path)
    if found.problem is not None:
        judgement.ended.append(f"{watcher.path}: {found.problem}")
