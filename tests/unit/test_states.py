"""Kept states agree with a model that recomputes them from the events by definition."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from random import Random

from msgspec.structs import asdict

from execution_events.events import COUNT_MAX, Occurrence
from execution_events.projection.fold import FoldedEvent, Identity, fold, merge
from execution_events.projection.states import (
    STATE_OF_REASON,
    STATES,
    Action,
    ActionChange,
    ActionKey,
    ElementKey,
    EventChange,
    Tally,
    action_key,
    advance,
    advance_element,
    changed_elements,
    events_by_action,
    execution_deltas,
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
            changes.append(EventChange(stored, now, action_key(now.latest)))
        events = events_by_action(changes)
        actions = {}
        for key in events.keys():  # noqa: SIM118
            before = self.actions.get(key)
            after = (
                recompute(e for e in self.events.values() if action_key(e.latest) == key)
                if key in events.rewritten
                else advance(before, events.added[key])
            )
            actions[key] = ActionChange(before, after)
            if after is None:
                self.actions.pop(key, None)
            else:
                self.actions[key] = after
        elements = {
            key: advance_element(self.elements.get(key), changed)
            for key, changed in changed_elements(actions).items()
        }
        for element, change in elements.items():
            if any(change.after.values()):
                self.elements[element] = change.after
            else:
                del self.elements[element]
        for execution, delta in execution_deltas(actions, elements).items():
            counters = self.executions[execution]
            counters["warnings"] += delta.warnings
            for state, change_ in delta.elements.items():
                counters[state] += change_


def model_of(event: FoldedEvent) -> states.Event:
    fields = asdict(event.latest) | {"occurrences": event.count}
    return states.Event(**{field: fields[field] for field in states.Event._fields})


def differences(store: Store) -> list[str]:
    events = [model_of(event) for event in store.events.values()]
    of_actions = states.actions(events)
    elements = {
        key: {state: tally.get(state, 0) for state in STATES}
        for key, tally in store.elements.items()
    }
    return [
        *states.compared(
            "action", of_actions, {key: asdict(action) for key, action in store.actions.items()}
        ),
        *states.compared("element", states.elements(of_actions), elements),
        *states.compared("execution", states.executions(events, of_actions), store.executions),
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
    action = advance(action, [(event("3", "ActionRetry", COUNT_MAX), COUNT_MAX)])
    assert (action.attempts, action.retries, action.warnings) == (COUNT_MAX,) * 3
