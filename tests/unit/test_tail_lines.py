"""Lines: columns, widths, and text that a terminal obeys made harmless."""

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution_events.tail.follow import json_line
from execution_events.tail.lines import Style, event_lines, shown_duration
from execution_events.tail.texts import columns, cut, harmless, padded
from execution_events.tail.watched_list import Change
from tests.unit.test_tail_states import event

UTC = Style(is_utc=True)


@given(st.text())
def test_any_text_becomes_one_harmless_line(text: str) -> None:
    shown = harmless(text)
    assert shown.isprintable()
    assert "\n" not in event_lines(Change("added", event(message=text), 1), None, UTC)[:-1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("a\r\nb\tc\0", r"a\r\nb\tc\x00"),
        ("\u202eevil\u2066\u200f\u2028", r"\u202eevil\u2066\u200f\u2028"),
        ("a\u3000b\u00a0c", "a b c"),
        ("\ud800", r"\ud800"),
        ("元素 é שלום", "元素 é שלום"),
    ],
)
def test_control_and_direction_are_escaped(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_characters_outside_the_encoding_are_escaped() -> None:
    assert harmless("é元", "latin-1") == r"é\u5143"
    assert harmless("é元\x1b", "ascii") == r"\xe9\u5143\x1b"


@given(st.text(), st.integers(3, 40))
def test_a_cut_text_fits(text: str, limit: int) -> None:
    shown = harmless(text)
    for mark in ("…", "..."):
        assert columns(cut(shown, limit, mark)) <= limit
    assert cut(shown, columns(shown), "…") == shown
    assert columns(padded(shown, limit)) == max(limit, columns(shown))


def test_wide_and_combining_characters_have_their_width() -> None:
    assert columns("元素") == 4
    assert columns("e\u0301") == 1
    assert cut("元素元素", 5, "…") == "元素…"
    assert cut("元素元素", 6, "…") == "元素…"


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=60), st.integers(1, 100))
def test_a_line_fits_the_terminal(elem_id: str, reason: str, message: str, width: int) -> None:
    change = Change("added", event(elem_id=elem_id, reason=reason, message=message, count=9), 1)
    for encoding in ("utf-8", "ascii"):
        style = UTC._replace(width=width, encoding=encoding)
        [line] = event_lines(change, timedelta(seconds=9), style).splitlines()
        assert columns(line) <= width
        line.encode(encoding)


def test_recurrences_are_shown_with_their_start() -> None:
    recurring = event(reason="ActionRetry", second=9, count=4)
    assert event_lines(Change("present", recurring, 4), None, UTC) == (
        "00:00:09  ▲ job                  ActionRetry       ×4 since 00:00:00  \n".rstrip() + "\n"
    )
    assert "×4 (+2)" in event_lines(Change("counted", recurring, 2), None, UTC)


@pytest.mark.parametrize(
    ("reason", "type_", "symbols"),
    [
        ("ActionStart", "Normal", "▶>"),
        ("SuccessfulFinish", "Normal", "✓+"),
        ("ActionFailed", "Warning", "✗x"),
        ("ActionTimeout", "Warning", "◷T"),
        ("ActionCancelled", "Normal", "⊘-"),
        ("ActionRetry", "Normal", "▲!"),
        ("PullImage", "Warning", "▲!"),
        ("PullImage", "Normal", "·."),
    ],
)
def test_each_kind_has_a_symbol_and_an_ascii_one(reason: str, type_: str, symbols: str) -> None:
    change = Change("added", event(reason=reason, type=type_), 1)
    for symbol, encoding in zip(symbols, ("utf-8", "ascii"), strict=True):
        assert event_lines(change, None, UTC._replace(encoding=encoding))[10] == symbol


def test_a_detailed_event_has_every_field() -> None:
    change = Change(
        "added", event(message="一 ## one", second=3, count=2, reason="ActionFailed"), 2
    )
    style = UTC._replace(is_detailed=True, width=40)
    assert event_lines(change, timedelta(seconds=2.56), style).splitlines()[1:] == [
        "          message   one",
        "          element   KubeDAG.init job, action create",
        "          object    tenant/object",
        "          event     tenant/n, type Normal",
        "          times     2026-01-01T00:00:00.000000Z to 2026-01-01T00:00:03.000000Z, "
        "2 occurrences",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.04, "0.0s"),
        (9.99, "9.9s"),
        (10.9, "10s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (212, "3m32s"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (90000, "1d1h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert shown_duration(seconds) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_is_one_harmless_line_with_the_same_content(text: str) -> None:
    one = event(message=text)
    line = json_line(Change("counted", one, 3), "both")
    told = json.loads(line)
    assert (told["change"], told["added"], told["event"]["message"]) == ("counted", 3, text)
    assert list(told["event"]) == [
        *("metadata", "involvedObject", "reason", "message", "firstTimestamp", "lastTimestamp"),
        *("count", "type", "elemType", "elemId", "actionName"),
    ]
    assert not set(line[:-1]) & {chr(code) for code in (*range(32), *range(127, 160), 0x202E)}
