"""The layout of events and notes as lines of a terminal."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from execution_events.bilingual import Lang
from execution_events.tail.event import Event, in_language
from execution_events.tail.states import STATES_BY_REASON, Elements, State
from execution_events.tail.texts import columns, cut, harmless, padded
from execution_events.tail.watched_list import Change

_RED, _GREEN, _YELLOW, _BLUE, _DIM = "31", "32", "33", "34", "2"
_COLORS: dict[str, str] = {
    "running": _BLUE,
    "succeeded": _GREEN,
    "failed": _RED,
    "timed_out": _RED,
    "cancelled": _DIM,
    "warning": _YELLOW,
    "other": "",
}
_SYMBOLS: dict[str, tuple[str, str]] = {
    "running": ("▶", ">"),
    "succeeded": ("✓", "+"),
    "failed": ("✗", "x"),
    "timed_out": ("◷", "T"),
    "cancelled": ("⊘", "-"),
    "warning": ("▲", "!"),
    "other": ("·", "."),
}
"""In UTF-8, and in other encodings."""
_COUNTED_STATES: tuple[State, ...] = (
    "succeeded",
    "failed",
    "timed_out",
    "cancelled",
    "running",
    "unknown",
)
_ELEMENT_WIDTH, _REASON_WIDTH, _DETAIL_WIDTH = 20, 17, 6
_NARROW = 80
"""Below this width, texts that do not fit their column are cut."""


class Style(NamedTuple):
    """The form of lines; without a `width` (columns of a terminal) nothing is cut."""

    lang: Lang = "en"
    is_utc: bool = False
    has_color: bool = False
    is_detailed: bool = False
    width: int | None = None
    encoding: str = "utf-8"

    @property
    def is_utf8(self) -> bool:
        return self.encoding == "utf-8"

    @property
    def is_narrow(self) -> bool:
        return self.width is not None and self.width < _NARROW

    def symbol(self, kind: str) -> str:
        return _SYMBOLS[kind][not self.is_utf8]

    @property
    def cut_mark(self) -> str:
        return "…" if self.is_utf8 else "..."

    def text(self, text: str) -> str:
        return harmless(text, self.encoding)

    def local(self, timestamp: str) -> datetime:
        return datetime.fromisoformat(timestamp).astimezone(UTC if self.is_utc else None)

    def note(self, text: str) -> str:
        """Return a line about the execution or the connection."""
        mark = "──" if self.is_utf8 else "--"
        return f"{mark} {self.text(text)}\n"


def event_lines(change: Change, duration: timedelta | None, style: Style) -> str:
    """Return the lines of a change, each with its line break."""
    event = in_language(change.event, style.lang)
    kind = _kind(change.event)
    detail = _detail(change, duration, style)
    parts = [
        (f"{style.local(event.last_timestamp):%H:%M:%S}", _DIM),
        ("  ", ""),
        (style.symbol(kind), _COLORS[kind]),
        (" ", ""),
        (_column(event.elem_id, _ELEMENT_WIDTH, style), ""),
        (" ", ""),
        (_column(event.reason, _REASON_WIDTH, style), _COLORS[kind]),
        (" ", ""),
        (detail if style.is_narrow else detail.rjust(_DETAIL_WIDTH), ""),
    ]
    if not style.is_detailed:
        parts.append((f"  {style.text(event.message)}", ""))
        return _joined(parts, style)
    return _joined(parts, style) + "".join(
        _joined([(f"          {name:<10}{style.text(text)}", "")], style._replace(width=None))
        for name, text in _details(event)
        if text
    )


def date_note(moment: datetime, style: Style) -> str:
    """Return the note before the first event of a date."""
    return style.note(f"{moment:%Y-%m-%d %Z}".rstrip())


def state_note(elements: Elements, style: Style) -> str:
    """Return the note of the elements in each state."""
    total = elements.total
    counted = [
        f"{elements.counts[state]} {state.replace('_', ' ')}"
        for state in _COUNTED_STATES
        if elements.counts[state]
    ]
    return style.note(", ".join([f"now: {total} element{'' if total == 1 else 's'}", *counted]))


def shown_duration(seconds: float) -> str:
    """Return a duration in at most two units, such as 3m32s."""
    whole = int(seconds)
    if whole < 10 and seconds != whole:
        return f"{int(seconds * 10) / 10}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _kind(event: Event) -> str:
    state = STATES_BY_REASON.get(event.reason_code)
    if state not in (None, "running"):
        return state
    if event.type == "Warning" or event.reason_code == "ActionRetry":
        return "warning"
    return state or "other"


def _column(text: str, width: int, style: Style) -> str:
    text = style.text(text)
    if style.is_narrow and style.width is not None:
        width = width * style.width // _NARROW
        text = cut(text, width, style.cut_mark)
    return padded(text, width)


def _detail(change: Change, duration: timedelta | None, style: Style) -> str:
    event = change.event
    parts = [] if duration is None else [shown_duration(duration.total_seconds())]
    if event.count > 1:
        parts.append(f"{'×' if style.is_utf8 else 'x'}{event.count}")
        if change.kind == "counted":
            parts.append(f"(+{change.added})")
        elif event.first_timestamp != event.last_timestamp:
            parts.append(f"since {style.local(event.first_timestamp):%H:%M:%S}")
    return " ".join(parts)


def _details(event: Event) -> list[tuple[str, str]]:
    return [
        ("message", event.message),
        ("element", f"{event.elem_type} {event.elem_id}, action {event.action_name}"),
        ("object", f"{event.involved_object.namespace}/{event.involved_object.name}"),
        ("event", f"{event.metadata.namespace}/{event.metadata.name}, type {event.type}"),
        ("times", f"{event.first_timestamp} to {event.last_timestamp}, {event.count} occurrences"),
    ]


def _joined(parts: list[tuple[str, str]], style: Style) -> str:
    """Return a line of parts and their colors, cut to the width."""
    left = style.width
    line = ""
    parts = [*parts[:-1], (parts[-1][0].rstrip(), parts[-1][1])]
    for text, color in parts:
        if left is not None:
            text = cut(text, left, style.cut_mark)
            left -= columns(text)
        line += f"\033[{color}m{text}\033[0m" if color and style.has_color and text else text
        if left == 0:
            break
    return line.rstrip(" ") + "\n"
