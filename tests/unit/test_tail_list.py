"""Changes of a watched list: each is told once, through resets and cuts."""

from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution_events.tail.event import Event, Key
from execution_events.tail.pace import Pace
from execution_events.tail.watched_list import Change, Message, WatchedList
from tests.unit.test_tail_states import event


def message(one: Event, *, has_id: bool = True) -> Message:
    return Message("message", msgspec.json.encode(one).decode(), has_id)


def reset(*events: Event) -> list[Message]:
    return [
        Message("reset", "{}", not events),
        *(message(one, has_id=one is events[-1]) for one in events),
    ]


def gone(one: Event) -> Message:
    return Message("gone", msgspec.json.encode({"metadata": one.metadata}).decode(), True)


def taken(watched: WatchedList, *messages: Message) -> list[tuple[str, str, int]]:
    return [
        (change.kind, change.event.metadata.name, change.added)
        for one in messages
        for change in watched.take(one)
    ]


A, B, C = (event(name, count=2) for name in "abc")


def test_the_first_list_is_told_when_it_is_whole() -> None:
    watched = WatchedList()
    *part, last = reset(A, B)
    assert taken(watched, *part) == []
    assert not watched.is_complete
    assert taken(watched, last) == [("present", "a", 2), ("present", "b", 2)]
    assert watched.is_complete


def test_an_empty_list_is_whole() -> None:
    watched = WatchedList()
    assert taken(watched, *reset()) == []
    assert watched.is_complete
    assert taken(watched, message(A)) == [("added", "a", 2)]


def test_a_cut_list_is_forgotten() -> None:
    watched = WatchedList()
    taken(watched, *reset(A)[:1], message(C, has_id=False))
    watched.reconnected()
    assert taken(watched, *reset(A)) == [("present", "a", 2)]
    # Cut again, and resumed from the id before it.
    taken(watched, *reset(B, C)[:2])
    watched.reconnected()
    assert taken(watched, message(event("a", count=5))) == [("counted", "a", 3)]


def test_a_reset_tells_only_what_is_new() -> None:
    watched = WatchedList()
    taken(watched, *reset(A, B))
    again = reset(event("b", count=3), C)
    assert taken(watched, *again) == [("gone", "a", 0), ("counted", "b", 1), ("added", "c", 2)]
    assert taken(watched, *again) == []
    assert taken(watched, *reset()) == [("gone", "b", 0), ("gone", "c", 0)]


def test_a_revision_told_twice_is_told_once() -> None:
    watched = WatchedList()
    taken(watched, *reset(A))
    later = [message(event("a", count=3), has_id=False), message(B)]
    assert taken(watched, *later, *later) == [("counted", "a", 1), ("added", "b", 2)]


def test_an_event_published_again_after_a_prune_is_new() -> None:
    watched = WatchedList()
    taken(watched, *reset(event("a", count=7)))
    assert taken(watched, *reset(event("a", count=2))) == [("gone", "a", 0), ("added", "a", 2)]


def test_gone_tells_the_last_known_state_once() -> None:
    watched = WatchedList()
    taken(watched, *reset(A))
    assert taken(watched, gone(A), gone(A)) == [("gone", "a", 0)]
    assert taken(watched, message(A)) == [("added", "a", 2)]


@pytest.mark.parametrize("data", ["", "{}", "[]", "null", "{", '{"metadata":1}'])
def test_a_malformed_message_is_refused(data: str) -> None:
    for kind in ("message", "gone"):
        with pytest.raises(msgspec.MsgspecError):
            WatchedList().take(Message(kind, data, True))


def test_unknown_members_and_types_are_ignored() -> None:
    watched = WatchedList()
    taken(watched, *reset(A))
    content = msgspec.json.encode(B).decode()
    assert taken(watched, Message("message", f'{{"new":1,{content[1:]}', True)) == [
        ("added", "b", 2)
    ]
    assert taken(watched, Message("hint", "x", True)) == []


def test_changes_of_one_event_wait_for_a_second() -> None:
    pace = Pace()
    one = Change("counted", event(count=2), 1)
    assert pace.offer(one, 10.0) is one
    assert pace.offer(Change("counted", event(count=3), 1), 10.2) is None
    assert pace.offer(Change("counted", event(count=5), 2), 10.9) is None
    assert list(pace.due(10.99)) == []
    assert pace.next_due == 11.0
    assert list(pace.due(11.0)) == [Change("counted", event(count=5), 3)]
    assert pace.offer(Change("counted", event(count=6), 1), 11.5) is None
    assert list(pace.due(12.0)) == [Change("counted", event(count=6), 1)]
    # After a quiet second the next one is shown at once.
    assert list(pace.due(13.0)) == []
    assert pace.next_due == float("inf")
    assert pace.offer(one, 13.0) is one


_told = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.floats(0, 0.6)), max_size=60
)
"""Names, occurrences that come, none for an event that goes, and seconds before."""


@given(_told)
def test_what_is_shown_folds_to_what_was_told(told: list[tuple[str, int, float]]) -> None:
    pace, now = Pace(), 0.0
    shown: list[tuple[float, Change]] = []
    counts: dict[str, int] = {}
    for name, added, pause in told:
        now += pause
        shown += ((now, change) for change in pace.due(now))
        if added:
            kind: Literal["added", "counted"] = "counted" if name in counts else "added"
            counts[name] = counts.get(name, 0) + added
            change = Change(kind, event(name, count=counts[name]), added)
        elif name in counts:
            change = Change("gone", event(name, count=counts.pop(name)), 0)
        else:
            continue
        if (offered := pace.offer(change, now)) is not None:
            shown.append((now, offered))
    last_shown: dict[Key, float] = {}
    for moment, change in shown:
        if change.kind != "added":
            assert moment - last_shown.get(change.event.key, -9) >= 1
        last_shown[change.event.key] = moment
    folded: dict[str, int] = {}
    for _, change in [*shown, *((now, change) for change in pace.rest())]:
        name = change.event.metadata.name
        assert (name in folded) == (change.kind != "added")
        if change.kind == "gone":
            del folded[name]
        else:
            folded[name] = folded.get(name, 0) + change.added
            assert change.event.count == folded[name]
    assert folded == counts


def test_changes_that_wait_are_merged() -> None:
    pace = Pace()
    gone_, added = Change("gone", A, 0), Change("added", A, 2)
    pace.offer(added, 0)
    pace.offer(Change("counted", event("a", count=3), 1), 0.1)
    pace.offer(gone_, 0.2)
    pace.offer(added, 0.3)
    pace.offer(Change("counted", event("a", count=4), 2), 0.4)
    assert list(pace.due(1)) == [gone_, Change("added", event("a", count=4), 4)]
    pace.offer(gone_, 1.1)
    assert list(pace.due(2)) == [gone_]
    pace.offer(added, 2.1)
    pace.offer(gone_, 2.2)
    assert list(pace.due(3)) == []
