"""A writer knows an execution as its last committed transaction left it."""

from execution_events.projection.fold import FoldedEvent
from execution_events.store.write.known import KnownExecution, KnownExecutions
from tests.support.records import EPOCH, occurrence

SMALL = KnownExecution(True, events={"object": FoldedEvent(occurrence(), 1, EPOCH, EPOCH)}).size
KEY = ("execution-1", "tenant")
OTHER = ("execution-2", "tenant")


def executed(revision: int, events: int = 1, characters: int = 0) -> KnownExecution:
    event = FoldedEvent(occurrence(), 1, EPOCH, EPOCH)
    named: dict[str, FoldedEvent | None] = {f"object.{number}": event for number in range(events)}
    return KnownExecution(True, revision, named, characters=characters)


def test_an_execution_is_known_at_the_revision_that_it_was_left_at() -> None:
    known, kept = KnownExecutions(), executed(7)
    known.put(KEY, kept)
    assert known.take(KEY, 7) is kept


def test_an_execution_that_another_writer_has_changed_is_not_known() -> None:
    known = KnownExecutions()
    known.put(KEY, executed(7))
    assert known.take(KEY, 8) == KnownExecution(whole=False)


def test_an_execution_that_begins_again_after_a_prune_has_no_events() -> None:
    known = KnownExecutions()
    known.put(KEY, executed(7))
    assert known.take(KEY, None) == KnownExecution(whole=True)


def test_nothing_is_known_of_an_execution_whose_transaction_has_not_been_committed() -> None:
    known = KnownExecutions()
    known.put(KEY, executed(7))
    known.take(KEY, 7)
    assert known.take(KEY, 7) == KnownExecution(whole=False)


def test_the_executions_written_longest_ago_are_forgotten() -> None:
    known = KnownExecutions(limit=10 * SMALL)
    for key in (KEY, OTHER):
        known.put(key, executed(7, events=4))
    known.put(KEY, known.take(KEY, 7))
    known.put(("execution-3", "tenant"), executed(7, events=4))
    assert known.take(OTHER, 7).events == {}
    assert len(known.take(KEY, 7).events) == 4


def test_an_execution_above_the_limit_is_not_kept() -> None:
    known = KnownExecutions(limit=10 * SMALL)
    known.put(KEY, executed(7, events=11))
    assert known.take(KEY, 7) == KnownExecution(whole=False)
    known.put(OTHER, executed(7, events=10))
    assert len(known.take(OTHER, 7).events) == 10


def test_long_messages_count() -> None:
    known = KnownExecutions(limit=10 * SMALL)
    known.put(KEY, executed(7, characters=10 * SMALL))
    assert known.take(KEY, 7) == KnownExecution(whole=False)
