"""Parsing and verdicts of the watch benchmark."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from tests.benchmarks import watch
from tests.benchmarks.changes import (
    ELEMENT,
    EVERYTHING,
    FILTERS,
    LISTED,
    WARNINGS,
    Change,
    Commit,
    Judgement,
    Watcher,
    changes,
    due,
    judge,
    listed,
    watchers,
)
from tests.benchmarks.watch import Cpu, Measured
from tests.benchmarks.watchers import Note, Seen, View
from tests.support.sse import Chunks, Message, Parser

STREAM = (
    b"\xef\xbb\xbfevent: reset\ndata:\n\n"
    b": a comment\n:\n\n"
    b"data: one\r\ndata\r\ndata:  two\r\nid: 7\r\n\r\n"
    b"id: not told of\nevent: nothing\nretry: 5\nunknown: x\n\n"
    b"id: a\0b\ndata: \xe5\x85\x83\r\r"
    b"data: unfinished\n"
)
MESSAGES = [
    Message("reset", "", None),
    Message("message", "one\n\n two", "7"),
    Message("message", "元", None),
]


def test_a_stream_is_parsed_as_the_standard_says() -> None:
    parser = Parser()
    assert parser.feed(STREAM) == MESSAGES
    assert parser.comments == 2
    assert parser.feed(b"\n") == [Message("message", "unfinished", None)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_a_stream_may_arrive_in_any_pieces(size: int) -> None:
    parser = Parser()
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [message for piece in pieces for message in parser.feed(piece)] == MESSAGES


def test_a_stream_may_be_short() -> None:
    assert Parser().feed(b"\n") == []
    assert Parser().feed(b"data\n\n") == [Message("message", "", None)]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_chunks_may_arrive_in_any_pieces(size: int) -> None:
    body = b"5\r\nhel\r\n\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n"
    chunks = Chunks()
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    assert b"".join(map(chunks.feed, pieces)) == b"hel\r\n0123456789"
    assert chunks.ended
    with pytest.raises(ValueError, match="invalid literal"):
        Chunks().feed(b"hello\r\n")


def content_of(name: str, count: int | None = None) -> str:
    fields = {} if count is None else {"count": count}
    return msgspec.json.encode({"metadata": {"name": name}, **fields}).decode()


def test_a_view_is_the_sum_of_its_messages() -> None:
    view = View()
    view.take(Message("reset", "{}", None), 1)
    for name, count in (("a", 1), ("b", 1), ("a", 3)):
        view.take(Message("message", content_of(name, count), "i"), 2)
    view.take(Message("gone", content_of("b"), None), 3)
    seen = view.seen
    assert seen.view == {"a": content_of("a", 3)}
    assert seen.notes == [Note(2, "a", 1), Note(2, "b", 1), Note(2, "a", 3), Note(3, "b", 0)]
    assert (seen.began_with_reset, seen.resets, seen.went_back, seen.ids) == (True, 1, 0, 3)
    view.take(Message("message", content_of("a", 2), None), 4)
    assert seen.went_back == 1
    view.take(Message("reset", "", None), 5)
    view.take(Message("message", content_of("a", 1), None), 5)
    assert (seen.view, seen.resets, seen.went_back) == ({"a": content_of("a", 1)}, 2, 1)
    with pytest.raises(ValueError, match="of type other"):
        view.take(Message("other", "", None), 6)
    with pytest.raises(ValueError, match="metadata"):
        view.take(Message("message", "{}", None), 6)


def test_watchers_are_spread_over_executions_and_filters() -> None:
    found = watchers(1000, 100)
    assert len(set(found)) == 100 * len(set(FILTERS))
    assert sum(watcher.filter is EVERYTHING for watcher in found) == 600
    assert found[300].path.endswith("/events?type=Warning")


def test_an_event_rests_between_its_changes() -> None:
    latest: dict[tuple[int, str], int] = {}
    found = changes(3000, 3)
    kinds = {"new": 0, "enters": 0, "leaves": 0}
    for turn, change in enumerate(found):
        assert change.execution == turn % 3
        key = change.execution, change.after.name
        assert turn - latest.get(key, -60) >= 60
        latest[key] = turn
        before, after = change.before, change.after
        kinds["new"] += before is None
        if before is not None:
            assert after.count == before.count + 1
            kinds["enters"] += WARNINGS.matches(after) > WARNINGS.matches(before)
            kinds["leaves"] += WARNINGS.matches(after) < WARNINGS.matches(before)
    assert min(kinds.values()) > 100
    assert len({change.after.name for change in found}) == LISTED * 4 // 5 + 200


WATCHING = [Watcher(0, EVERYTHING), Watcher(0, WARNINGS), Watcher(0, ELEMENT)]
CHANGED = changes(LISTED, 1)
COMMITS = [Commit(number, number + 0.5) for number in range(len(CHANGED))]


def shown(change: Change) -> dict[str, Any]:
    return {"metadata": {"name": change.after.name}, "count": change.after.count}


def perfect() -> tuple[list[Seen], dict[str, dict[str, Any]]]:
    """Return the messages of watchers that get each change 0.25 s after its commit."""
    found, lists = [], {}
    for watcher in WATCHING:
        view = View()
        view.take(Message("reset", "", None), 0)
        for event in filter(watcher.filter.matches, listed(0)):
            view.take(Message("message", content_of(event.name, 1), None), 0)
        for change, commit in zip(CHANGED, COMMITS, strict=True):
            if due(watcher, change):
                kind = "message" if watcher.filter.matches(change.after) else "gone"
                content = content_of(
                    change.after.name, None if kind == "gone" else change.after.count
                )
                view.take(Message(kind, content, "i"), commit.ended + 0.25)
        found.append(view.seen)
        lists[watcher.path] = {
            name: msgspec.json.decode(content) for name, content in view.seen.view.items()
        }
    return found, lists


def judged(seen: Sequence[Seen], lists: dict[str, dict[str, Any]]) -> Judgement:
    return judge(WATCHING, seen, CHANGED, COMMITS, lists)


def test_watchers_that_receive_every_change_pass() -> None:
    judgement = judged(*perfect())
    assert set(judgement.latencies) == {"", "type=Warning", "elemId=job-1-init"}
    assert {each for found in judgement.latencies.values() for each in found} == {0.25}
    assert len(judgement.latencies[""]) == len(CHANGED)
    assert 0 < len(judgement.latencies["elemId=job-1-init"]) < len(CHANGED)
    wrong = judgement.missed, judgement.different, judgement.unordered, judgement.ended
    assert not any(wrong)
    assert (judgement.resets, judgement.needless) == (0, 0)


@pytest.mark.parametrize("watcher", range(len(WATCHING)))
def test_each_missing_message_is_noticed(watcher: int) -> None:
    whole = perfect()[0][watcher].notes
    first = sum(map(WATCHING[watcher].filter.matches, listed(0)))
    assert len(whole) > first
    for number in range(first, len(whole)):
        seen, lists = perfect()
        del seen[watcher].notes[number]
        assert len(judged(seen, lists).missed) == 1


def test_a_message_before_the_return_of_the_commit_has_no_latency() -> None:
    seen, lists = perfect()
    seen[0].notes = [note._replace(moment=note.moment - 0.5) for note in seen[0].notes]
    assert set(judged(seen, lists).latencies[""]) == {0}


def test_a_wrong_final_state_is_noticed() -> None:
    seen, lists = perfect()
    seen[0].view.popitem()
    seen[1].began_with_reset = False
    seen[2].problem = "closed"
    seen[2].ids = 0
    seen[2].resets = 2
    judgement = judged(seen, lists)
    assert judgement.different == [WATCHING[0].path]
    assert judgement.unordered == [WATCHING[1].path, WATCHING[2].path]
    assert judgement.ended == [f"{WATCHING[2].path}: closed"]
    assert judgement.resets == 1


def test_a_missed_change_breaks_a_report() -> None:
    seen, lists = perfect()
    measured = Measured(1, Cpu(0.01, 0, 0), Cpu(0.5, 0.2, 0.3), 10, 0.01, 60, 70)
    report = watch.report(WATCHING, judged(seen, lists), measured, 1, 10, 2)
    assert all(verdict.met for verdict in report.verdicts)
    assert not report.broken
    del seen[0].notes[-1]
    broken = watch.report(WATCHING, judged(seen, lists), measured, 1, 10, 2).broken
    assert len(broken) == 1
    assert broken[0].startswith("1 changes that a watcher did not receive: /v1/executions/")
