"""The run of `tail`, from the first request to the exit code."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from execution_events.bilingual import Lang
from execution_events.errors import ExecutionEventsError, RetryableError
from execution_events.tail.ending import Endings
from execution_events.tail.event import in_language
from execution_events.tail.lines import (
    Style,
    date_note,
    event_lines,
    shown_duration,
    state_note,
)
from execution_events.tail.pace import Pace
from execution_events.tail.states import Elements, State
from execution_events.tail.watch import (
    Connected,
    Disconnected,
    Parameters,
    ReaderClient,
    Signal,
)
from execution_events.tail.watched_list import Change, Message, WatchedList

EXIT_FAILED: Final = 3
"""With `--exit-status`: an element stands failed or timed out."""
EXIT_QUIET: Final = 4
"""With `--exit-status`: nothing was heard for `--quiet-after`."""

_TIMES: Parameters = (("times", "micro"),)
_QUEUE_SIZE = 1000
"""Signals that wait for the output: a slow terminal slows the watch down."""
_STATE_INTERVAL = 10.0
"""Minimum seconds between two notes of the states."""
_GRACE = 0.5
"""Seconds for changes stored before the reader's last answer to arrive."""
_SHOWN_RUNNING = 3

Outcome = Literal["settled", "quiet", "listed", "timeout", "stopped"]


class Output(Protocol):
    """Standard output and standard error."""

    def event(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def flush(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TailOptions:
    """The options of a run; durations in seconds, None for none.

    `elements` and `filters` are parameters of the API: both select the events to show, `elements`
    alone the elements whose states are counted.
    """

    reader: str
    execution_id: str
    token_file: Path | None = None
    elements: Parameters = ()
    filters: Parameters = ()
    follows: bool = True
    last: int | None = 20
    """Events to show at first; None is all."""
    as_json: bool = False
    lang: Lang = "en"
    settled_after: float | None = None
    quiet_after: float | None = None
    timeout: float | None = None
    judges: bool = False
    """Decide the exit code by the states."""


async def follow(
    options: TailOptions, output: Output, style: Callable[[], Style], stop: asyncio.Event
) -> int:
    """Follow an execution until an ending or `stop`; return the exit code.

    `style` returns the current form of lines. Raises `MisconfiguredError` if the reader refuses,
    and `RetryableError` if it is unavailable and the run does not follow.
    """
    async with ReaderClient.open(
        options.reader, options.execution_id, options.token_file
    ) as client:
        run = _Run(options, output, style, client)
        try:
            outcome = await run.outcome(stop)
        finally:
            await run.close()
        return run.end(outcome)


@dataclass
class _Watch:
    parameters: Parameters
    events: WatchedList = field(default_factory=WatchedList)
    is_connected: bool = False
    is_reported: bool = False
    """The current outage was noted."""


class _Stop:
    """The run was asked to end."""


_Item = tuple[_Watch, Signal | Exception] | _Stop


class _Run:
    """One or two watches in a queue, and everything that follows from their signals.

    A watch of the whole elements counts states; if other filters apply, another one shows events.
    """

    def __init__(
        self,
        options: TailOptions,
        output: Output,
        style: Callable[[], Style],
        client: ReaderClient,
    ) -> None:
        self._options = options
        self._output = output
        self._style = style
        self._client = client
        self._queue: asyncio.Queue[_Item] = asyncio.Queue(_QUEUE_SIZE)
        self._tasks: list[asyncio.Task[None]] = []
        self._counted = _Watch((*_TIMES, *options.elements))
        self._shown = self._counted
        if options.filters:
            self._shown = _Watch((*_TIMES, *options.elements, *options.filters))
        self._elements = Elements()
        self._pace = Pace()
        self._endings = Endings(options.settled_after, options.quiet_after)
        self._is_confirmed = False
        self._date = datetime.now(UTC if style().is_utc else None).date()
        self._states: Counter[State] = Counter()
        """The elements by state in the last note of them."""
        self._states_noted = 0.0
        self._states_due = float("inf")

    async def outcome(self, stop: asyncio.Event) -> Outcome:
        """Handle signals until the run ends."""
        loop = asyncio.get_running_loop()
        timeout = self._options.timeout
        end = due = loop.time() + (float("inf") if timeout is None else timeout)
        self._tasks.append(asyncio.create_task(self._end_queue(stop)))
        self._start(self._counted)
        while True:
            item = await self._next(due)
            now = loop.time()
            if isinstance(item, _Stop):
                return "stopped"
            if item is not None:
                self._handle(*item, now)
                if self._is_listed and not self._options.follows:
                    return "listed"
            self._show_due(now)
            if now >= end:
                return "timeout"
            if not self._queue.empty():
                continue
            self._output.flush()
            ending = self._endings.reached(now)
            if ending is None:
                self._is_confirmed = False
                due = min(end, self._pace.next_due, self._states_due, self._endings.next_due)
            elif self._is_confirmed:
                return ending
            else:
                # Other than a watch, an answer shows that the reader sees the database.
                self._is_confirmed = await self._client.answers(self._counted.parameters)
                now = loop.time()
                if not self._is_confirmed:
                    self._endings.restart(now)
                due = now + _GRACE

    async def _next(self, due: float) -> "_Item | None":
        """Return the next item of the queue; None at the time `due`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                return await self._queue.get()
        return None

    async def close(self) -> None:
        """End the watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def end(self, outcome: Outcome) -> int:
        """Show what waits, and why the run ends; return the exit code."""
        options, style = self._options, self._style()
        for change in self._pace.rest():
            self._show(change, style)
        reasons = {
            "settled": f"settled: no element has run for {_shown(options.settled_after)}",
            "quiet": f"quiet: no event for {_shown(options.quiet_after)}{self._still_running()}",
            "timeout": f"timeout: not ended within {_shown(options.timeout)}",
        }
        if outcome in reasons:
            self._output.note(style.note(reasons[outcome]))
        self._note_states(style, 0)
        self._output.flush()
        if outcome == "stopped":
            # Without a verdict, success must not be concluded.
            return 1 if options.judges else 0
        if options.judges and self._elements.has_failed:
            return EXIT_FAILED
        if outcome == "quiet" and options.judges:
            return EXIT_QUIET
        return 1 if outcome == "timeout" else 0

    @property
    def _is_listed(self) -> bool:
        return self._counted.events.is_complete and self._shown.events.is_complete

    def _start(self, watch: _Watch) -> None:
        self._tasks.append(asyncio.create_task(self._feed(watch)))

    async def _feed(self, watch: _Watch) -> None:
        try:
            async with aclosing(self._client.watch(watch.parameters)) as signals:
                async for signal in signals:
                    await self._queue.put((watch, signal))
        except Exception as error:
            await self._queue.put((watch, error))

    async def _end_queue(self, stop: asyncio.Event) -> None:
        await stop.wait()
        await self._queue.put(_Stop())

    def _handle(self, watch: _Watch, signal: Signal | Exception, now: float) -> None:
        match signal:
            case Connected():
                self._on_connected(watch, now)
            case Disconnected():
                self._on_disconnected(watch, signal, now)
            case Message():
                self._on_message(watch, signal, now)
            case error:
                raise error

    def _on_connected(self, watch: _Watch, now: float) -> None:
        watch.events.reconnected()
        watch.is_connected = True
        if watch.is_reported:
            watch.is_reported = False
            self._output.note(self._style().note("connected to the reader"))
        if self._counted.is_connected and self._shown.is_connected:
            self._endings.resume(now)

    def _on_disconnected(self, watch: _Watch, signal: Disconnected, now: float) -> None:
        watch.is_connected = False
        self._endings.pause(now)
        if not self._options.follows:
            raise RetryableError(f"reader unavailable: {signal.reason}")
        if signal.failures and not watch.is_reported:
            watch.is_reported = True
            note = f"reader unavailable ({signal.reason}); trying again"
            self._output.note(self._style().note(note))

    def _on_message(self, watch: _Watch, message: Message, now: float) -> None:
        was_complete = watch.events.is_complete
        try:
            changes = watch.events.take(message)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ExecutionEventsError(f"malformed message from the reader: {error}") from error
        if watch is self._counted:
            for change in changes:
                self._elements.apply(change)
            if self._is_listed and self._elements.counts != self._states:
                self._states_due = self._states_noted + _STATE_INTERVAL
        if changes or not was_complete:
            self._endings.changed(now, has_ended=self._elements.has_ended)
            self._is_confirmed = False
        if watch.events.is_complete and not was_complete and watch is not self._shown:
            self._start(self._shown)
        if watch is not self._shown:
            return
        style = self._style()
        if watch.events.is_complete and not was_complete:
            for change in self._first(changes):
                self._pace.offer(change, now)
                self._show(change, style)
            if self._options.follows:
                self._note_states(style, now)
            return
        for change in changes:
            if (offered := self._pace.offer(change, now)) is not None:
                self._show(offered, style)
        if not was_complete:
            return
        gone = sum(change.kind == "gone" for change in changes)
        if gone:
            self._output.note(style.note(f"no longer there: {gone} event{'s' * (gone > 1)}"))

    def _first(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Return the changes of the first list to show, by their last timestamps."""
        changes = sorted(changes, key=lambda change: change.event.last_timestamp)
        last = self._options.last
        return changes if last is None else changes[len(changes) - min(last, len(changes)) :]

    def _show_due(self, now: float) -> None:
        if now >= self._pace.next_due:
            style = self._style()
            for change in self._pace.due(now):
                self._show(change, style)
        if now >= self._states_due:
            self._note_states(self._style(), now)

    def _note_states(self, style: Style, now: float) -> None:
        if self._is_listed:
            self._output.note(state_note(self._elements, style))
            self._states = self._elements.counts.copy()
            self._states_noted, self._states_due = now, float("inf")

    def _show(self, change: Change, style: Style) -> None:
        if self._options.as_json:
            self._output.event(json_line(change, self._options.lang))
        elif change.kind != "gone":
            moment = style.local(change.event.last_timestamp)
            if moment.date() != self._date:
                self._date = moment.date()
                self._output.note(date_note(moment, style))
            self._output.event(event_lines(change, self._elements.duration(change.event), style))

    def _still_running(self) -> str:
        running = self._elements.running()
        if not running:
            return ""
        more = f" and {len(running) - _SHOWN_RUNNING} more" if len(running) > _SHOWN_RUNNING else ""
        return f"; running: {', '.join(running[:_SHOWN_RUNNING])}{more}"


_UNSAFE = re.compile(r"[\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def json_line(change: Change, lang: Lang) -> str:
    """Return a change as a line of JSON.

    Characters that a terminal obeys are escaped, which JSON permits anywhere in a string.
    """
    line = msgspec.json.encode(
        {"change": change.kind, "added": change.added, "event": in_language(change.event, lang)}
    ).decode()
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n"


def _shown(seconds: float | None) -> str:
    return shown_duration(seconds or 0)
