"""What is changed while it is watched, and what each watcher must have been told of it. Pure."""

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
"""Of so many changes of an execution, the last is a new event."""
_STEP = 7
"""From the event that recurs to the next that does; has no divisor in common with `LISTED`."""
_LATER = timedelta(hours=1)
"""From the executions' beginning to the first change."""


class Filter(NamedTuple):
    """A filter of the API, and the same in Python."""

    query: str
    matches: Callable[[Occurrence], bool]


EVERYTHING = Filter("", lambda _: True)
WARNINGS = Filter("type=Warning", lambda event: event.type == WARNING)
ELEMENT = Filter("elemId=job-1-init", lambda event: event.elem_id == "job-1-init")
FILTERS = (EVERYTHING, EVERYTHING, EVERYTHING, WARNINGS, ELEMENT)
"""Those of the watchers of an execution, in turn."""


class Change(NamedTuple):
    """A record that is stored in a transaction of its own, and its event before and after."""

    execution: int
    record: Occurrence
    before: Occurrence | None
    after: Occurrence


class Commit(NamedTuple):
    """When a change's transaction began and had ended, on the monotonic clock."""

    begun: float
    ended: float


class Watcher(NamedTuple):
    """Who watches what."""

    execution: int
    filter: Filter

    @property
    def path(self) -> str:
        query = f"?{self.filter.query}" if self.filter.query else ""
        return f"/v1/executions/{execution_id(self.execution)}/events{query}"


@dataclass
class Judgement:
    """Seconds from the commit until a watcher was told, by filter; and what was wrong."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    missed: list[str] = field(default_factory=list)
    """Changes that a watcher was to be told of, and was not."""
    different: list[str] = field(default_factory=list)
    """Watchers who know something else in the end than a list says."""
    unordered: list[str] = field(default_factory=list)
    """Watchers who did not begin with a reset, got no id, or saw a count go down."""
    ended: list[str] = field(default_factory=list)
    """Watchers whose stream ended, and why."""
    resets: int = 0
    """Beyond the first of each watcher."""
    needless: int = 0
    """Messages beyond those that tell of changes."""


def execution_id(number: int) -> str:
    """The id of an execution."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"changes:{number}"))


def watchers(number: int, executions: int) -> list[Watcher]:
    """So many watchers, the same number of each execution."""
    return [
        Watcher(each % executions, FILTERS[each // executions % len(FILTERS)])
        for each in range(number)
    ]


def listed(execution: int) -> list[Occurrence]:
    """The events of an execution before the first change."""
    return [_event(execution, position) for position in range(LISTED)]


def _event(execution: int, position: int) -> Occurrence:
    type_ = WARNING if position % 4 == 1 else NORMAL
    return occurrence(execution_id(execution), position, type_=type_)


def changes(number: int, executions: int) -> list[Change]:
    """So many changes: each execution in turn is told a recurrence or a new event.

    An event changes again only after `LISTED` changes of its execution, so that every watcher can
    be told of each change; and its type may, so that it begins or ceases to match a filter.
    """
    states = {
        (execution, position): event
        for execution in range(executions)
        for position, event in enumerate(listed(execution))
    }
    found = []
    for each in range(number):
        turn, execution = divmod(each, executions)
        position = LISTED + turn // NEW if turn % NEW == NEW - 1 else turn * _STEP % LISTED
        moment = BEGUN + _LATER + timedelta(seconds=each)
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
    """Whether a watcher must be told of a change."""
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
    """Hold what each watcher has seen to what was changed, and to the lists by path in the end."""
    judgement = Judgement()
    by_execution: dict[int, list[tuple[Change, Commit]]] = defaultdict(list)
    for change, commit in zip(changed, commits, strict=True):
        by_execution[change.execution].append((change, commit))
    for watcher, found in zip(watching, seen, strict=True):
        notes: dict[str, list[Note]] = defaultdict(list)
        for note in found.notes:
            notes[note.name].append(note)
        told = 0
        for change, commit in by_execution[watcher.execution]:
            if not due(watcher, change):
                continue
            gone = not watcher.filter.matches(change.after)
            telling = _telling(notes[change.after.name], change.after.count, commit.begun, gone)
            if telling is None:
                judgement.missed.append(
                    f"{watcher.path}: {change.after.name}, count {change.after.count}"
                )
            else:
                told += 1
                judgement.latencies[watcher.filter.query].append(
                    max(0, telling.moment - commit.ended)
                )
        _judge_end(judgement, watcher, found, lists[watcher.path])
        first = sum(map(watcher.filter.matches, listed(watcher.execution)))
        judgement.needless += max(0, len(found.notes) - told - first * found.resets)
    return judgement


def _telling(notes: Iterable[Note], count: int, begun: float, gone: bool) -> Note | None:
    """The first note that tells of a change, or of a later one of the same event."""
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
