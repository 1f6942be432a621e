"""From any position a feed gives each later change once, or None."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution_events.projection.body import Body, Ref
from execution_events.store.read import feeds
from execution_events.store.read.changes import Change, ExecutionScope, RevisionDelta, Revisions
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
    """A model of an execution's revisions and their changes, without a feed."""

    def __init__(self) -> None:
        self.revision = 0
        self.now: dict[str, int] = {}
        self.changed: dict[Event, int] = {}
        self.pruned: dict[str, int] = {}
        self.positions: list[Revisions] = [{}]
        """All revisions so far."""

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

    def delta(self, before: Revisions) -> RevisionDelta:
        """Return the delta that the store would read."""
        changes = [change(e, r) for e, r in sorted(self.since(before).items(), key=lambda i: i[1])]
        is_complete = before.keys() <= self.now.keys() and not self.was_pruned(before, self.now)
        return RevisionDelta(before, dict(self.now), changes, is_complete)

    def was_pruned(self, before: Revisions, after: Revisions) -> bool:
        """Return whether a namespace of `before` was pruned before `after`."""
        return any(
            revision <= self.pruned.get(namespace, 0)
            and not 0 < after.get(namespace, 0) <= self.pruned[namespace]
            for namespace, revision in before.items()
        )


def follow(
    deltas: Sequence[RevisionDelta], position: Revisions
) -> tuple[list[tuple[Event, int]], Revisions]:
    """Return the changes that a watcher at `position` shows, and its next position."""
    shown: list[tuple[Event, int]] = []
    for delta in deltas:
        for one in delta.changes:
            if one.revision > position.get(one.namespace, 0):
                shown.append((Event(one.namespace, one.event.metadata.name), one.revision))
        position = {
            namespace: max(position.get(namespace, 0), delta.after.get(namespace, 0))
            for namespace in {**position, **delta.after}
        }
    return shown, position


def at_or_after(one: Revisions, other: Revisions) -> bool:
    return all(one.get(namespace, 0) >= revision for namespace, revision in other.items())


_NAMESPACE = st.sampled_from(NAMESPACES)
_WRITES = st.tuples(st.just("write"), _NAMESPACE, st.text("abc", min_size=1, max_size=3))
_PRUNES = st.tuples(st.just("prune"), _NAMESPACE, st.just(""))
_POLLS = st.tuples(st.just("poll"), st.just(""), st.just(""))
_FORGETS = st.tuples(st.just("forget"), st.just(""), st.just(""))
_ACTIONS = st.lists(st.one_of(_WRITES, _WRITES, _WRITES, _POLLS, _POLLS, _FORGETS, _PRUNES))


@given(_ACTIONS, st.integers(0, 6))
def test_a_watcher_sees_each_change_once_or_must_read_the_list(
    actions: list[tuple[str, str, str]], limit: int
) -> None:
    database, feed, now = Database(), Feed(ExecutionScope("e", None)), 0.0
    feed.advance(RevisionDelta({}, {}, ()), now)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(feeds, "_RETENTION_CHANGES", limit)
        for action, namespace, names in [*actions, ("poll", "", "")]:
            now += 1
            match action:
                case "write":
                    database.write(namespace, names)
                case "prune":
                    database.prune(namespace)
                case "forget":
                    feed.forget(now)
                case "poll":
                    poll(database, feed, now)
            for position in database.positions:
                check(database, feed, position)


def poll(database: Database, feed: Feed, now: float) -> None:
    assert feed.known is not None
    before = feed.known
    delta = database.delta(before)
    feed.forget(now)
    if delta.after != before:
        feed.advance(delta, now)
        if delta.is_complete:
            # A watcher that was up to date can continue.
            assert feed.after(before) is not None
    assert feed.known == database.now
    assert feed.after(feed.known) == []


def check(database: Database, feed: Feed, position: Revisions) -> None:
    known = feed.known or {}
    deltas = feed.after(position)
    if deltas is None:
        return
    # Positions that the feed never had, or does not have yet, get no deltas.
    assert at_or_after(known, position)
    assert not database.was_pruned(position, known)
    shown, end = follow(deltas, position)
    assert end == known
    for event in {event for event, _ in shown}:
        revisions = [revision for other, revision in shown if other == event]
        assert revisions == sorted(set(revisions))
    # Without the changes since the last poll.
    expected = {
        (event, revision)
        for event, revision in database.since(position).items()
        if revision <= known.get(event.namespace, 0)
    }
    assert expected <= set(shown)
    assert all(revision > position.get(event.namespace, 0) for event, revision in shown)


@pytest.mark.parametrize("age", [4.9, 5.1])
def test_deltas_are_kept_for_five_seconds(age: float) -> None:
    database, feed = Database(), Feed(ExecutionScope("e", None))
    feed.advance(RevisionDelta({}, {}, ()), 0)
    for now, name in enumerate("abc"):
        database.write("m", name)
        feed.advance(database.delta(feed.known or {}), now)
    feed.forget(1 + age)
    # The oldest are dropped first.
    assert (feed.after({"m": 1}) is None) == (age > 5)
    deltas = feed.after({"m": 2})
    assert deltas is not None
    assert len(deltas) == 1


def test_the_last_delta_is_kept_regardless_of_its_size() -> None:
    database, feed = Database(), Feed(ExecutionScope("e", None))
    feed.advance(RevisionDelta({}, {}, ()), 0)
    for _ in range(2):
        before = feed.known or {}
        database.write("m", "".join(map(chr, range(1000, 2000))))
        feed.advance(database.delta(before), 0)
        deltas = feed.after(before)
        assert deltas is not None
        assert sum(len(delta.changes) for delta in deltas) == 1000
    # The delta before it was dropped.
    assert feed.after({}) is None
