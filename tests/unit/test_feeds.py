"""A feed leads whoever stands at any position over each change once, or says that it cannot."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution_events.projection.body import Body, Ref
from execution_events.store.read import feeds
from execution_events.store.read.changes import Asked, Change, Revisions, Step
from execution_events.store.read.feeds import Feed
from tests.support.records import EPOCH

NAMESPACES = ("m", "n")


class Event(NamedTuple):
    namespace: str
    name: str


def change(event: Event, revision: int) -> Change:
    body = Body(Ref(event.name, event.namespace), Ref("", ""), "", "", "", "", 1, "", "", "", "")
    return Change(event.namespace, revision, False, EPOCH, EPOCH, b"", body)


class Database:
    """The revisions of an execution and what each changed, without any feed."""

    def __init__(self) -> None:
        self.revision = 0
        self.now: dict[str, int] = {}
        self.changed: dict[Event, int] = {}
        self.pruned: dict[str, int] = {}
        self.positions: list[Revisions] = [{}]
        """All that it ever had."""

    def write(self, namespace: str, names: str) -> None:
        self.revision += 1
        self.now[namespace] = self.revision
        self.changed |= {Event(namespace, name): self.revision for name in names}
        self.positions.append(dict(self.now))

    def prune(self, namespace: str) -> None:
        if namespace in self.now:
            self.pruned[namespace] = self.now.pop(namespace)
        self.changed = {e: r for e, r in self.changed.items() if e.namespace != namespace}
        self.positions.append(dict(self.now))

    def since(self, position: Revisions) -> dict[Event, int]:
        return {e: r for e, r in self.changed.items() if r > position.get(e.namespace, 0)}

    def step(self, before: Revisions) -> Step:
        """As the store finds it."""
        changes = [change(e, r) for e, r in sorted(self.since(before).items(), key=lambda i: i[1])]
        is_complete = before.keys() <= self.now.keys() and not self.was_pruned(before, self.now)
        return Step(before, dict(self.now), changes, is_complete)

    def was_pruned(self, before: Revisions, after: Revisions) -> bool:
        """Whether a namespace of `before` is not the one of `after` any more."""
        return any(
            revision <= self.pruned.get(namespace, 0)
            and not 0 < after.get(namespace, 0) <= self.pruned[namespace]
            for namespace, revision in before.items()
        )


def follow(steps: Sequence[Step], position: Revisions) -> tuple[list[tuple[Event, int]], Revisions]:
    """What a watcher that stands at `position` shows of `steps`, and where it stands then."""
    shown: list[tuple[Event, int]] = []
    for step in steps:
        for one in step.changes:
            if one.revision > position.get(one.namespace, 0):
                shown.append((Event(one.namespace, one.event.metadata.name), one.revision))
        position = {
            namespace: max(position.get(namespace, 0), step.after.get(namespace, 0))
            for namespace in {**position, **step.after}
        }
    return shown, position


def at_or_after(one: Revisions, other: Revisions) -> bool:
    return all(one.get(namespace, 0) >= revision for namespace, revision in other.items())


_NAMESPACE = st.sampled_from(NAMESPACES)
_WRITES = st.tuples(st.just("write"), _NAMESPACE, st.text("abc", min_size=1, max_size=3))
_PRUNES = st.tuples(st.just("prune"), _NAMESPACE, st.just(""))
_LOOKS = st.tuples(st.just("look"), st.just(""), st.just(""))
_FORGETS = st.tuples(st.just("forget"), st.just(""), st.just(""))
_ACTIONS = st.lists(st.one_of(_WRITES, _WRITES, _WRITES, _LOOKS, _LOOKS, _FORGETS, _PRUNES))


@given(_ACTIONS, st.integers(0, 6))
def test_who_follows_sees_each_change_once_or_is_told(
    actions: list[tuple[str, str, str]], kept: int
) -> None:
    database, feed, now = Database(), Feed(Asked("e", None)), 0.0
    feed.advance(Step({}, {}, ()), now)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(feeds, "_KEPT_CHANGES", kept)
        for action, namespace, names in [*actions, ("look", "", "")]:
            now += 1
            match action:
                case "write":
                    database.write(namespace, names)
                case "prune":
                    database.prune(namespace)
                case "forget":
                    feed.forget(now)
                case "look":
                    look(database, feed, now)
            for position in database.positions:
                check(database, feed, position)


def look(database: Database, feed: Feed, now: float) -> None:
    assert feed.known is not None
    before = feed.known
    step = database.step(before)
    feed.forget(now)
    if step.after != before:
        feed.advance(step, now)
        if step.is_complete:
            # Who has kept up until now goes on.
            assert feed.after(before) is not None
    assert feed.known == database.now
    assert feed.after(feed.known) == []


def check(database: Database, feed: Feed, position: Revisions) -> None:
    known = feed.known or {}
    steps = feed.after(position)
    if steps is None:
        return
    # Nobody is led on who stands where the feed never was, or where it is not yet.
    assert at_or_after(known, position)
    assert not database.was_pruned(position, known)
    shown, end = follow(steps, position)
    assert end == known
    for event in {event for event, _ in shown}:
        revisions = [revision for other, revision in shown if other == event]
        assert revisions == sorted(set(revisions))
    # What came since the feed looked is not its own.
    expected = {
        (event, revision)
        for event, revision in database.since(position).items()
        if revision <= known.get(event.namespace, 0)
    }
    assert expected <= set(shown)
    assert all(revision > position.get(event.namespace, 0) for event, revision in shown)


@pytest.mark.parametrize("age", [4.9, 5.1])
def test_steps_are_kept_for_a_while(age: float) -> None:
    database, feed = Database(), Feed(Asked("e", None))
    feed.advance(Step({}, {}, ()), 0)
    for now, name in enumerate("abc"):
        database.write("m", name)
        feed.advance(database.step(feed.known or {}), now)
    feed.forget(1 + age)
    # Oldest first: whoever stands at what is left goes on.
    assert (feed.after({"m": 1}) is None) == (age > 5)
    steps = feed.after({"m": 2})
    assert steps is not None
    assert len(steps) == 1


def test_the_last_step_is_kept_whatever_its_size() -> None:
    database, feed = Database(), Feed(Asked("e", None))
    feed.advance(Step({}, {}, ()), 0)
    for _ in range(2):
        before = feed.known or {}
        database.write("m", "".join(map(chr, range(1000, 2000))))
        feed.advance(database.step(before), 0)
        steps = feed.after(before)
        assert steps is not None
        assert sum(len(step.changes) for step in steps) == 1000
    # And that before it makes room for it.
    assert feed.after({}) is None
