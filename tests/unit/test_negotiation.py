"""The format that an Accept header chooses."""

import pytest

from execution_events.web.negotiation import choose_format

LINES, WATCH = "application/x-ndjson", "text/event-stream"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        # JSON if nothing else is named, and for malformed headers.
        ("", "json"),
        ("*/*", "json"),
        ("application/*", "json"),
        (",;q=1", "json"),
        ("/", "json"),
        (";,;q=,=;;", "json"),
        (f"{WATCH};q=2", "json"),
        (f"{WATCH};q=0.1234", "json"),
        (f"{WATCH};q=-1", "json"),
        (f"{WATCH};q=", "json"),
        (f"{WATCH};q=nan", "json"),
        # Named.
        (WATCH, "watch"),
        (LINES, "lines"),
        (WATCH.upper(), "watch"),
        (f" {WATCH} ; q=0.1 ", "watch"),
        (f"{WATCH};charset=utf-8", "watch"),
        (f"{WATCH};q=1.000", "watch"),
        (f"{WATCH};Q=0.5", "watch"),
        # None is acceptable.
        ("text/html, image/png;q=0.5", None),
        ("text/*", None),
        (f"{WATCH}x", None),
        (f"{WATCH};q=0", None),
        (f"{LINES};q=0.000", None),
        ("*/*;q=0", None),
        ("application/json;q=0", None),
        (f"application/json;q=0, {LINES};q=0, */*", None),
        ("application/*;q=0, */*", None),
        # JSON or a watch is refused.
        ("application/json;q=0, */*", "lines"),
        ("application/json;q=0, application/*", "lines"),
        (f"{WATCH};q=0, */*", "json"),
        (f"{WATCH};q=0, {LINES}", "lines"),
        (f"{WATCH}, {LINES};q=0", "watch"),
        # With JSON: the better one, and JSON on a tie with its own name.
        (f"{WATCH}, application/json", "json"),
        (f"{WATCH}, application/json;q=0.9", "watch"),
        (f"{WATCH};q=0.9, application/json", "json"),
        (f"{LINES}, application/json", "json"),
        (f"{LINES}, application/json;q=0.9", "lines"),
        (f"application/json;q=0, {WATCH};q=0.1", "watch"),
        # With a range: the named format on a tie.
        (f"{WATCH}, */*", "watch"),
        (f"*/*, {WATCH}", "watch"),
        (f"{WATCH};q=0.5, */*;q=0.5", "watch"),
        (f"{WATCH};q=0.5, */*", "json"),
        (f"{LINES}, application/*", "lines"),
        (f"{LINES};q=0.5, application/*", "json"),
        # The most specific range decides the quality of JSON.
        (f"{WATCH};q=0.5, application/json;q=0.1, */*", "watch"),
        (f"{WATCH};q=0.5, application/*;q=0.1, */*", "watch"),
        (f"{WATCH};q=0.5, application/json, application/*;q=0.1", "json"),
        # Both others: the better one, and a watch on a tie.
        (f"{WATCH}, {LINES}", "watch"),
        (f"{LINES}, {WATCH}", "watch"),
        (f"{WATCH};q=0.5, {LINES}", "lines"),
        (f"{WATCH}, {LINES};q=0.5", "watch"),
        (f"{WATCH};q=0.5, {LINES};q=0.4, application/json;q=0.6", "json"),
        # Browsers.
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "json"),
    ],
)
def test_the_preferred_format_is_chosen(accept: str, chosen: str | None) -> None:
    assert choose_format(accept) == chosen


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "json"),
        (WATCH, None),
        (f"{WATCH}, text/html", None),
        (f"{WATCH}, */*", "json"),
        (f"{WATCH}, {LINES};q=0.1", "lines"),
        (f"{WATCH}, application/json;q=0.1", "json"),
        (LINES, "lines"),
    ],
)
def test_what_cannot_be_watched_has_the_other_formats(accept: str, chosen: str | None) -> None:
    assert choose_format(accept, can_watch=False) == chosen
