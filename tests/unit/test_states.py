"""Kept states agree with a model that recomputes them from the events by definition."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from operator import add
from random import Random

from msgspec.structs import asdict

from execution_events.events import COUNT_MAX, Occurrence
from execution_events.projection.fold import FoldedEvent, Identity, fold, merge
from execution_events.projection.states import (
    STATE_OF_REASON,
    STATES,
    Action,
    ActionKey,
    Execution,
    Tally,
    action_key,
    advance,
    advance_all,
    element_deltas,
    events_by_action,
    recompute,
)
from execution_events.publisher import lifecycle
from tests.support import histories, states

START = datetime(2018, 8, 20, 6, 41, 44, tzinfo=UTC)


class Store:
    """Events and states as the database keeps them, changed batch by batch."""

    def __init__(self) -> None:
        self.events: dict[Identity, FoldedEvent] = {}
        self.actions: dict[ActionKey, Action] = {}
        self.executions: dict[Execution, Tally] = {}
        self.warnings: Counter[Execution] = Counter()

    def store(self, batch: Iterable[Occurrence]) -> None:
        new, changed = [], []
        for identity, event in fold(batch).items():
            stored = self.events.get(identity)
            if stored is None:
                new.append(event)
            else:
                event = merge(stored, event)
                changed.append((stored, event))
            self.events[identity] = event
        events = events_by_action(new, changed)
        remaining = {
            key: [event for event in self.events.values() if action_key(event.latest) == key]
            for key in events.rewritten
        }
        changes = advance_all(events, self.actions, remaining)
        for execution, delta in element_deltas(changes.elements, self.actions).items():
            before = self.executions.get(execution, [0] * len(STATES))
            self.executions[execution] = list(map(add, before, delta))
        for key, (_, after) in changes.actions.items():
            if after is None:
                del self.actions[key]
            else:
                self.actions[key] = after
        self.warnings.update(changes.warnings)


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
        *states.compared(
            "action", of_actions, {key: asdict(action) for key, action in store.actions.items()}
        ),
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
