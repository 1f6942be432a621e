"""Kept states agree with a model that recomputes them from the events by definition."""

import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution_events.events import COUNT_MAX, Occurrence
from execution_events.projection.failure import failure_fingerprint
from execution_events.projection.fold import FoldedEvent, Identity, fold, merge
from execution_events.projection.states import (
    ELEMENT_PRECEDENCE,
    EXECUTION_PRECEDENCE,
    Action,
    ActionChange,
    ActionKey,
    ElementKey,
    EventChange,
    Tally,
    action_changes,
    action_key,
    advance,
    apply_to_elements,
    recompute,
    state_of,
)
from tests.support import strategies

START = datetime(2018, 8, 20, 6, 41, 44, tzinfo=UTC)
SETTINGS = settings(max_examples=2000, deadline=None)

_moments = st.integers(0, 4).map(lambda seconds: START + timedelta(seconds=seconds))
_few = st.sampled_from(["a", "b"])


@st.composite
def occurrences(draw: st.DrawFn) -> Occurrence:
    """Occurrences of few events, actions and moments, so that they meet, tie and move."""
    first, last = sorted((draw(_moments), draw(_moments)))
    code = draw(
        st.sampled_from(
            [
                "ActionStart",
                "ActionRetry",
                "SuccessfulFinish",
                "ActionFailed",
                "ActionCancelled",
                "ActionTimeout",
                "PullImage",
            ]
        )
    )
    return Occurrence(
        execution_id=draw(st.sampled_from(["e", "e", "f"])),
        namespace="n",
        name=draw(st.sampled_from(["o.1", "o.2", "o.3", "\uffee.1", "😀.1"])),
        object_name=draw(st.sampled_from(["o", "o", "o", "p"])),
        object_namespace="n",
        reason=draw(st.sampled_from([f"开始##{code}", f"## {code} ", code])),
        message=draw(st.sampled_from(["", "失败 ## a failed: 0x1F", "坏##b failed 12345"])),
        first_timestamp=first,
        last_timestamp=last,
        count=draw(st.integers(1, 3) | st.just(2**31 - 1)),
        type=draw(st.sampled_from(["Normal", "Warning"])),
        elem_type=draw(st.sampled_from(["t", "t", "u"])),
        elem_id=draw(_few),
        action_name=draw(_few),
    )


logs = st.lists(occurrences(), max_size=14)


class Store:
    """Events and states as the database keeps them, changed batch by batch."""

    def __init__(self) -> None:
        self.events: dict[Identity, FoldedEvent] = {}
        self.actions: dict[ActionKey, Action] = {}
        self.elements: dict[ElementKey, Tally] = {}
        self.executions: dict[tuple[str, str], dict[str, int]] = defaultdict(
            lambda: defaultdict(int)
        )

    def store(self, batch: Iterable[Occurrence]) -> None:
        changes = []
        for identity, event in fold(batch).items():
            stored = self.events.get(identity)
            now = event if stored is None else merge(stored, event)
            self.events[identity] = now
            changes.append(EventChange(stored, now))
        self.apply(changes)

    def apply(self, event_changes: list[EventChange]) -> None:
        of_actions = action_changes(event_changes)
        changes = {}
        for key in of_actions.keys():  # noqa: SIM118
            before = self.actions.get(key)
            after = (
                recompute(e for e in self.events.values() if action_key(e.latest) == key)
                if key in of_actions.rewritten
                else advance(before, of_actions.added[key])
            )
            changes[key] = ActionChange(before, after)
            if after is None:
                self.actions.pop(key, None)
            else:
                self.actions[key] = after
        tallies, deltas = apply_to_elements(changes, self.elements)
        for element, tally in tallies.items():
            if any(tally.values()):
                self.elements[element] = tally
            else:
                del self.elements[element]
        for execution, delta in deltas.items():
            counters = self.executions[execution]
            counters["warnings"] += delta.warnings
            for state, change in delta.elements.items():
                counters[state] += change


# The model: each column by its definition, from all events.

STATES = {
    "ActionStart": "running",
    "ActionRetry": "running",
    "SuccessfulFinish": "succeeded",
    "ActionFailed": "failed",
    "ActionCancelled": "cancelled",
    "ActionTimeout": "timed_out",
}
TIES = ["failed", "timed_out", "cancelled", "succeeded", "running"]


def english(text: str) -> str:
    return text.split("##", 1)[-1].strip(" ")


def capped(number: int) -> int:
    return min(number, 9007199254740991)


def action_row(events: list[FoldedEvent]) -> dict[str, Any]:
    def total(matches: Any) -> int:
        return capped(sum(e.count for e in events if matches(e.latest)))

    deciding = None
    told = [e.latest for e in events if english(e.latest.reason) in STATES]
    if told:
        latest = max(o.last_timestamp for o in told)
        told = [o for o in told if o.last_timestamp == latest]
        state = min((STATES[english(o.reason)] for o in told), key=TIES.index)
        deciding = max(
            (o for o in told if STATES[english(o.reason)] == state), key=lambda o: o.name.encode()
        )
    last_seen = max(e.latest.last_timestamp for e in events)
    at_last = [e.latest for e in events if e.latest.last_timestamp == last_seen]
    last = deciding if deciding in at_last else max(at_last, key=lambda o: o.name.encode())
    assert last is not None
    starts = [e.latest.last_timestamp for e in events if english(e.latest.reason) == "ActionStart"]
    failed = deciding is not None and state in ("failed", "timed_out")
    return {
        "state": state if deciding else "unknown",
        "started": max(starts, default=None),
        "finished": deciding.last_timestamp if deciding and state != "running" else None,
        "attempts": total(lambda o: english(o.reason) == "ActionStart"),
        "retries": total(lambda o: english(o.reason) == "ActionRetry"),
        "warnings": total(lambda o: o.type == "Warning"),
        "last_seen": last_seen,
        "last_event": last.name,
        "failure": english(deciding.message) if deciding and failed else None,
        "fingerprint": fingerprint_by_definition(deciding) if deciding and failed else None,
    }


def fingerprint_by_definition(latest: Occurrence) -> str:
    text = english(latest.message)
    identifiers = {latest.execution_id, latest.object_name, latest.elem_id}
    for identifier in sorted(identifiers, key=len, reverse=True):
        text = re.sub(rf"(?<![A-Za-z0-9_]){re.escape(identifier)}(?![A-Za-z0-9_])", "<>", text)
    text = re.sub(r"0[xX][0-9A-Fa-f]+", "<>", text)
    text = re.sub(r"[0-9]{4,}", "<>", text)
    parts = (latest.elem_type, english(latest.reason), text)
    return sha256("\0".join(parts).encode()).hexdigest()[:16]


def kept_row(action: Action) -> dict[str, Any]:
    return {
        "state": action.state,
        "started": action.started,
        "finished": action.finished,
        "attempts": action.attempts,
        "retries": action.retries,
        "warnings": action.warnings,
        "last_seen": action.last_seen,
        "last_event": action.last_event,
        "failure": action.failure,
        "fingerprint": action.fingerprint,
    }


def check(store: Store) -> None:
    by_action = defaultdict(list)
    for event in store.events.values():
        by_action[action_key(event.latest)].append(event)
    expected = {key: action_row(events) for key, events in by_action.items()}
    assert {key: kept_row(action) for key, action in store.actions.items()} == expected
    by_element = defaultdict(list)
    for action, row in expected.items():
        by_element[action.element].append(row["state"])
    element_states = {
        key: min(states, key=ELEMENT_PRECEDENCE.index) for key, states in by_element.items()
    }
    assert {
        key: state_of(tally, ELEMENT_PRECEDENCE) for key, tally in store.elements.items()
    } == element_states
    by_execution = defaultdict(list)
    for key, state in element_states.items():
        by_execution[key[:2]].append(state)
    assert set(store.executions) == set(by_execution)
    for execution, states in by_execution.items():
        counters = dict(store.executions[execution])
        warnings = counters.pop("warnings")
        assert warnings == sum(r["warnings"] for k, r in expected.items() if k[:2] == execution)
        assert counters.keys() >= set(states)
        assert all(number == states.count(state) for state, number in counters.items())
        assert state_of(counters, EXECUTION_PRECEDENCE) == min(
            states, key=EXECUTION_PRECEDENCE.index
        )


@given(st.data(), logs)
@SETTINGS
def test_states_equal_the_model_after_every_batch_of_any_split(
    data: st.DataObject, log: list[Occurrence]
) -> None:
    store = Store()
    for part in data.draw(strategies.splits(len(log))):
        store.store(log[part])
        check(store)


def test_counts_stop_at_the_maximum() -> None:
    def event(name: str, code: str, count: int) -> FoldedEvent:
        occurrence = Occurrence(
            execution_id="e",
            namespace="n",
            name=name,
            object_name="o",
            object_namespace="n",
            reason=code,
            message="",
            first_timestamp=START,
            last_timestamp=START,
            count=1,
            type="Warning",
            elem_type="t",
            elem_id="i",
            action_name="a",
        )
        return FoldedEvent(occurrence, count, START, START)

    action = recompute([event("1", "ActionStart", COUNT_MAX), event("2", "ActionStart", 1)])
    assert action is not None
    assert (action.attempts, action.warnings) == (COUNT_MAX, COUNT_MAX)
    action = advance(action, [(event("3", "ActionRetry", COUNT_MAX), COUNT_MAX)])
    assert (action.attempts, action.retries, action.warnings) == (COUNT_MAX,) * 3


COMMON = {
    "execution_id": "e19d3faf-9f04-9685-e5c0-fbe8d40b96cd",
    "object_name": "etl-20261126",
    "elem_type": "KubeDAG.init",
    "elem_id": "job-a",
}


def of(message: str, code: str = "ActionFailed", **others: str) -> str:
    return failure_fingerprint(code, message, **{**COMMON, **others})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pod etl-20261126 lost", "pod <> lost"),
        ("Element(job-a) failed", "Element(<>) failed"),
        ("元素job-a失败", "元素<>失败"),
        (
            "volume 7d444840-9dc0-11d1-b245-5ffdce74fad2 gone",
            "volume 7D444840-9DC0-11D1-B245-5FFDCE74FAD3 gone",
        ),
        ("segfault at 0xDEADbeef", "segfault at 0X1"),
        ("pid 12345 died", "pid 9876 died"),
        ("took 10345 ms", "took 98761 ms"),
        ("run e19d3faf-9f04-9685-e5c0-fbe8d40b96cd", "run <>"),
    ],
)
def test_equal_failures_group(one: str, other: str) -> None:
    assert of(one) == of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("exit code 137", "exit code 1"),
        ("connection refused", "connection reset"),
        ("job-ab failed", "job-a failed"),
        ("磁盘已满", "内存不足"),
        ("/data/a.csv: no such file", "/data/b.csv: no such file"),
    ],
)
def test_different_failures_do_not_group(one: str, other: str) -> None:
    assert of(one) != of(other)


def test_reason_and_element_type_are_part_of_the_fingerprint() -> None:
    assert len({of("x"), of("x", "ActionTimeout"), of("x", elem_type="KubeDAG.job")}) == 3


def test_the_fingerprint_is_the_documented_hash() -> None:
    text = "Element(<>) of <> failed: <> at <>: <>"
    message = (
        "Element(job-a) of etl-20261126 failed: 20261126 at 0xFf:"
        " 7d444840-9dc0-11d1-b245-5ffdce74fad2"
    )
    assert of(message) == sha256(f"KubeDAG.init\0ActionFailed\0{text}".encode()).hexdigest()[:16]
