"""Kept states agree with a model that recomputes them from the events by definition."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from operator import add
from random import Random
from typing import Any

from msgspec.structs import asdict

from execution_events.events import COUNT_MAX, Occurrence
from execution_events.projection.fold import FoldedEvent, Identity, fold, merge
from execution_events.projection.states import (
    STATE_OF_REASON,
    STATES,
    ActionEvents,
    Actions,
    ElementKey,
    Execution,
    Tally,
    advance,
    advance_all,
    element_key,
    recompute,
)
from execution_events.publisher import lifecycle
from tests.support import histories, states

START = datetime(2018, 8, 20, 6, 41, 44, tzinfo=UTC)


class Store:
    """Events and states as the database keeps them, changed batch by batch."""

    def __init__(self) -> None:
        self.events: dict[Identity, FoldedEvent] = {}
        self.elements: dict[ElementKey, Actions] = {}
        self.executions: dict[Execution, Tally] = {}
        self.warnings: Counter[Execution] = Counter()

    def store(self, batch: Iterable[Occurrence]) -> None:
        events = ActionEvents()
        for identity, event in fold(batch).items():
            stored = self.events.get(identity)
            if stored is None:
                events.add(event)
            else:
                event = merge(stored, event)
                events.change(stored, event)
            self.events[identity] = event
        remaining = {
            (element, name): [
                event
                for event in self.events.values()
                if (element_key(event.latest), event.latest.action_name) == (element, name)
            ]
            for element, names in events.rewritten.items()
            for name in names
        }
        changes = advance_all(events, self.elements, remaining)
        for execution, tally in changes.tallies.items():
            before = self.executions.get(execution, [0] * len(STATES))
            self.executions[execution] = list(map(add, before, tally))
        for element, name, _, after in changes.actions:
            assert changes.elements[element].get(name) is after
        self.elements |= changes.elements
        self.warnings.update(changes.warnings)

    def actions(self) -> dict[states.Key, dict[str, Any]]:
        return {
            (*element, name): asdict(action)
            for element, actions in self.elements.items()
            for name, action in actions.items()
        }


def model_of(event: FoldedEvent) -> states.Event:
    fields = asdict(event.latest) | {"occurrences": event.count}
    return states.Event(**{field: fields[field] for field in states.Event._fields})


def differences(store: Store) -> list[str]:
    events = [model_of(event) for event in store.events.values()]
    of_actions = states.actions(events)
    executions = {
        key: dict(zip(STATES, tally, strict=True)) | {"warnings": store.warnings[key]}
        for key, tally in store.executions.items()
    }
    return [
        *states.compared("action", of_actions, store.actions()),
        *states.compared("execution", states.executions(events, of_actions), executions),
    ]


def test_states_equal_the_model_after_every_batch_of_random_histories() -> None:
    for seed in range(12_000):
        store = Store()
        for batch in histories.batches(Random(seed)):
            store.store(batch)
            assert (seed, differences(store)) == (seed, [])


def test_each_reason_of_the_catalogue_decides_a_state() -> None:
    assert {reason.code for reason in lifecycle.CATALOGUE} == STATE_OF_REASON.keys()


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
    action = advance(action, [event("3", "ActionRetry", COUNT_MAX)])
    assert (action.attempts, action.retries, action.warnings) == (COUNT_MAX,) * 3
