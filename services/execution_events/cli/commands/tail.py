"""`tail`: an execution followed in a terminal, by the API."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import urlsplit

from execution_events.cli.arguments import duration, moment, whole_number
from execution_events.cli.extras import extra
from execution_events.cli.signals import run_until_stopped
from execution_events.cli.streams import write_note, write_text
from execution_events.errors import SettingsError
from execution_events.events import EXECUTION_ID, EXECUTION_ID_FORMAT
from execution_events.settings import Settings

if TYPE_CHECKING:
    from execution_events.tail.lines import Style

_ELEMENTS = {"elem_type": "elemType", "elem_id": "elemId", "action": "actionName"}
_FILTERS = {"type": "type", "reason": "reason", "exclude_reason": "excludeReason"}
"""Options that may repeat, and their parameters of the API."""

_EPILOG = """\
Exit codes: 0 ended as asked, or by SIGINT or SIGTERM; 1 --timeout, or a reader that is unavailable
with --no-follow; 2 wrong usage, or refused by the reader (400, 401, 403). With --exit-status also:
3 an element stands failed or timed out; 4 --quiet-after; 1 for SIGINT or SIGTERM.
"""


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    tail = commands.add_parser(
        "tail",
        help="follow an execution in a terminal",
        description="Follow an execution by the reader's API: first its last events, then each "
        "change. Recurrences of one event are shown at most once a second. Events go to standard "
        "output; states and the connection to standard error. A lost connection is resumed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tail.add_argument(
        "execution_id", type=_execution_id, metavar="EXECUTION_ID", help="the execution to follow"
    )
    tail.add_argument(
        "--reader",
        type=_url,
        metavar="URL",
        help="address of the reader (default: http://127.0.0.1 and EXECUTION_EVENTS_READER_PORT)",
    )
    tail.add_argument("--token-file", type=Path, metavar="FILE", help="file with the token to send")
    tail.add_argument("--no-follow", action="store_true", help="end after the first events")
    first = tail.add_mutually_exclusive_group()
    first.add_argument(
        "--last",
        type=whole_number(0, 10**9),
        metavar="N",
        help="number of events to show first (default: 20; all with --since)",
    )
    first.add_argument("--all", action="store_true", help="show all events first")
    tail.add_argument(
        "--since",
        type=_since,
        metavar="10m|TIME",
        help="only events that occurred since a duration ago, or since a time with an offset",
    )
    tail.add_argument("--warnings", action="store_true", help="as --type Warning")
    for name, text in (
        ("type", "only events of this type"),
        ("reason", "only events with this reason, whole or either half"),
        ("elem-type", "only elements of this type"),
        ("elem-id", "only this element"),
        ("action", "only this action"),
        ("exclude-reason", "no events with this reason"),
    ):
        tail.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar=name[0].upper() if name != "exclude-reason" else "R",
            help=f"{text}; may be repeated",
        )
    tail.add_argument(
        "-q", metavar="TEXT", help="only events with this text in their message or reason"
    )
    tail.add_argument(
        "--lang",
        choices=("en", "zh", "both"),
        help="language of reasons and messages (default: en; both with --json)",
    )
    tail.add_argument("--utc", action="store_true", help="show times in UTC (default: local)")
    tail.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colors (default: auto, on a terminal unless NO_COLOR is set)",
    )
    form = tail.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object per change")
    form.add_argument("--detailed", action="store_true", help="show all fields of each event")
    tail.add_argument(
        "--until-settled",
        type=duration,
        nargs="?",
        const=30.0,
        metavar="DURATION",
        help="end once an element has ended and none has run for this long (30s)",
    )
    tail.add_argument(
        "--quiet-after",
        type=duration,
        nargs="?",
        const=300.0,
        metavar="DURATION",
        help="end once nothing has been heard for this long (5m)",
    )
    tail.add_argument(
        "--exit-status",
        action="store_true",
        help="exit with 3 if an element stands failed or timed out, with 4 after --quiet-after",
    )
    tail.add_argument(
        "--timeout", type=duration, metavar="DURATION", help="end after this long with exit code 1"
    )
    tail.set_defaults(run=_tail)


def _tail(arguments: argparse.Namespace, settings: Settings) -> int:
    with extra("tail"):
        from execution_events.tail.follow import TailOptions, follow
    ends = (arguments.until_settled, arguments.quiet_after, arguments.timeout)
    if arguments.exit_status and not arguments.no_follow and not any(ends):
        raise SettingsError(
            "--exit-status: expected --until-settled, --quiet-after, --timeout or --no-follow too"
        )
    last = arguments.last
    if last is None and not arguments.all and arguments.since is None:
        last = 20
    options = TailOptions(
        reader=arguments.reader or f"http://127.0.0.1:{settings.reader.port}",
        execution_id=arguments.execution_id,
        token_file=arguments.token_file,
        elements=_parameters(arguments, _ELEMENTS),
        filters=_filters(arguments),
        follows=not arguments.no_follow,
        last=last,
        as_json=arguments.json,
        lang=arguments.lang or ("both" if arguments.json else "en"),
        settled_after=arguments.until_settled,
        quiet_after=arguments.quiet_after,
        timeout=arguments.timeout,
        judges=arguments.exit_status,
    )
    output = _Output()
    style = _style(arguments, options.lang, sys.stdout)
    return run_until_stopped(lambda stop: follow(options, output, style, stop))


class _Output:
    """Events on standard output, notes on standard error, each in the order of the run."""

    def __init__(self) -> None:
        self._pending: list[str] = []

    def event(self, text: str) -> None:
        self._pending.append(text)

    def note(self, text: str) -> None:
        self.flush()
        write_note(text)

    def flush(self) -> None:
        text = "".join(self._pending)
        self._pending.clear()
        if text:
            write_text(text)


def _style(arguments: argparse.Namespace, lang: Any, output: TextIO) -> Callable[[], "Style"]:
    """Return a function that returns the form of lines, at the terminal's current width."""
    from execution_events.tail.lines import Style

    is_terminal = output.isatty()
    if arguments.json:
        # JSON is UTF-8 everywhere, and its notes need not fit the events.
        output.reconfigure(encoding="utf-8")  # type: ignore[attr-defined]
    style = Style(
        lang=lang,
        is_utc=arguments.utc,
        has_color=_has_color(arguments.color, os.environ, is_terminal=is_terminal),
        is_detailed=arguments.detailed,
        encoding=_encoding(sys.stderr if arguments.json else output),
    )
    if not is_terminal:
        return lambda: style
    return lambda: style._replace(width=shutil.get_terminal_size().columns)


def _encoding(output: TextIO) -> str:
    encoding = (output.encoding or "ascii").lower()
    return "utf-8" if encoding in ("utf-8", "utf8") else encoding


def _has_color(choice: str, environ: Mapping[str, str], *, is_terminal: bool) -> bool:
    if choice != "auto":
        return choice == "always"
    return is_terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def _filters(arguments: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    given = list(_parameters(arguments, _FILTERS))
    if arguments.warnings:
        given.append(("type", "Warning"))
    if arguments.since is not None:
        given.append(("since", arguments.since.strftime("%Y-%m-%dT%H:%M:%S.%fZ")))
    if arguments.q is not None:
        given.append(("q", arguments.q))
    return tuple(given)


def _parameters(
    arguments: argparse.Namespace, names: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    return tuple(
        (parameter, value)
        for name, parameter in names.items()
        for value in getattr(arguments, name)
    )


def _execution_id(text: str) -> str:
    if not EXECUTION_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected {EXECUTION_ID_FORMAT}")
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise argparse.ArgumentTypeError(
            f'expected a URL such as https://events.example.com, not "{text}"'
        )
    return text


def _since(text: str) -> datetime:
    try:
        return datetime.now(UTC) - timedelta(seconds=duration(text))
    except argparse.ArgumentTypeError:
        return moment(text)
