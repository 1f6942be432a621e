"""The states of elements, against a recomputation from all events."""

from collections import Counter, defaultdict
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from execution_events.tail.event import Event, Ref
from execution_events.tail.states import Elements
from execution_events.tail.watched_list import Change

REASONS = {
    "ActionStart": "running",
    "ActionRetry": "running",
    "SuccessfulFinish": "succeeded",
    "ActionFailed": "failed",
    "ActionCancelled": "cancelled",
    "ActionTimeout": "timed_out",
    "PullImage": None,
}


def event(
    name: str = "n",
    reason: str = "ActionStart",
    second: int = 0,
    elem_id: str = "job",
    action: str = "create",
    object_name: str = "object",
    count: int = 1,
    message: str = "",
    first: int = 0,
    **more: str,
) -> Event:
    return Event(
        metadata=Ref(name, "tenant"),
        involved_object=Ref(object_name, "tenant"),
        reason=f"原因##{reason}",
        message=message,
        first_timestamp=f"2026-01-01T00:00:{first:02}.000000Z",
        last_timestamp=f"2026-01-01T00:00:{second:02}.000000Z",
        count=count,
        type=more.get("type", "Normal"),
        elem_type="KubeDAG.init",
        elem_id=elem_id,
        action_name=action,
    )


events = st.builds(
    event,
    name=st.sampled_from("abcdefgh"),
    reason=st.sampled_from(sorted(REASONS)),
    second=st.integers(0, 6),
    elem_id=st.sampled_from("xyz"),
    action=st.sampled_from(["create", "delete"]),
    object_name=st.sampled_from("op"),
)


def recomputed(stored: dict[str, Event]) -> Counter[str]:
    """Return the states of elements by the rules of the design, in its own words."""
    actions = defaultdict[tuple[str, str, str], list[Event]](list)
    for one in stored.values():
        actions[one.involved_object.name, one.elem_id, one.action_name].append(one)
    elements = defaultdict[tuple[str, str], list[str]](list)
    for (object_name, elem_id, _), ones in actions.items():
        deciding = [one for one in ones if REASONS[one.reason_code]]
        state = "unknown"
        if deciding:
            latest = max(one.last_timestamp for one in deciding)
            states = {REASONS[one.reason_code] for one in deciding if one.last_timestamp == latest}
            order = ("failed", "timed_out", "cancelled", "succeeded", "running")
            state = next(state for state in order if state in states)
        elements[object_name, elem_id].append(state)
    first = ("running", "failed", "timed_out", "cancelled", "succeeded", "unknown")
    return Counter(next(s for s in first if s in states) for states in elements.values())


@given(st.lists(st.tuples(events, st.booleans()), max_size=40))
def test_states_equal_a_recomputation_after_every_change(
    changes: list[tuple[Event, bool]],
) -> None:
    elements, stored = Elements(), dict[str, Event]()
    for one, is_gone in changes:
        if is_gone and one.metadata.name in stored:
            gone = stored.pop(one.metadata.name)
            elements.apply(Change("gone", gone, 0))
        else:
            stored[one.metadata.name] = one
            elements.apply(Change("added", one, 1))
        expected = recomputed(stored)
        assert +elements.counts == expected
        assert elements.total == expected.total()
        assert len(elements.running()) == expected["running"]
        ended = expected.keys() - {"running", "unknown"}
        assert elements.has_ended == (bool(ended) and not expected["running"])
        assert elements.has_failed == bool(expected["failed"] + expected["timed_out"])


def test_a_duration_is_that_of_the_latest_attempt() -> None:
    elements = Elements()
    for one in (event("s", second=5), event("f", "ActionFailed", 20), event("p", "PullImage", 6)):
        elements.apply(Change("added", one, 1))
    assert elements.duration(event("f", "ActionFailed", 20)) == timedelta(seconds=15)
    assert elements.duration(event("p", "PullImage", 20)) is None
    assert elements.duration(event("s", second=5)) is None
    assert elements.duration(event("f", "ActionFailed", 20, action="delete")) is None
    # The end of an attempt before the latest.
    elements.apply(Change("counted", event("s", second=30), 1))
    assert elements.duration(event("f", "ActionFailed", 20)) is None
