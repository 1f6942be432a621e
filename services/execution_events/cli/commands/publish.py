"""`publish`: events from a file or standard input."""

import argparse
import asyncio
import gzip
import hashlib
import re
import sys
import uuid
import zlib
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from execution_events import wire
from execution_events.cli.arguments import seconds
from execution_events.cli.progress import Progress
from execution_events.cli.report import Report
from execution_events.cli.streams import note
from execution_events.clock import now_ms
from execution_events.errors import (
    EventError,
    ExecutionEventsError,
    RecordRefusedError,
    RetryableError,
    SettingsError,
)
from execution_events.events import Occurrence
from execution_events.settings import Settings

if TYPE_CHECKING:
    from execution_events.publisher.delivery.direct import DirectDelivery
    from execution_events.publisher.delivery.sender import Acknowledged

_WINDOW = 10_000
"""Maximum number of unacknowledged records."""
_SHOWN_ERRORS = 10
_SOURCE_MAX_CHARACTERS = 256
_PRINTED_SOURCE = re.compile(r"publish:[0-9a-f-]{36}:([0-9a-f]{16})")
_OTHER_ENCODINGS = {
    b"\xef\xbb\xbf": "a byte order mark",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_GZIP = b"\x1f\x8b"


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    publish = commands.add_parser(
        "publish",
        help="publish events from a file or standard input",
        description="Publish events: a JSON array, or one JSON object per line, each as in "
        "schemas/event.schema.json or in the reader's responses; compressed by gzip or not. "
        "Nothing is published unless all are valid. Each run publishes new occurrences: a file "
        "published twice counts twice. To send a file again after an error or an interruption, "
        "repeat the command with the --source that it printed: nothing counts twice, unless the "
        "topic got more partitions in between.",
    )
    publish.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="file; - (default) is standard input"
    )
    publish.add_argument("--execution-id", metavar="ID", help="execution id of events without one")
    publish.add_argument(
        "--source",
        type=_source,
        metavar="SOURCE",
        help="name of the run, 1 to 256 characters; events of one SOURCE are numbered, and those "
        "that an earlier run with the same file has sent are not counted again (default: a new "
        "one, printed on standard error)",
    )
    publish.add_argument(
        "--timeout",
        type=seconds,
        default=60,
        metavar="SECONDS",
        help="seconds without an answer from Kafka until it gives up (default: %(default)s)",
    )
    publish.add_argument(
        "--json", action="store_true", help="print each acknowledged record as a JSON object"
    )
    publish.set_defaults(run=_publish)


def _source(text: str) -> str:
    if not (text.isprintable() and 1 <= len(text) <= _SOURCE_MAX_CHARACTERS):
        raise argparse.ArgumentTypeError(
            f"expected 1 to {_SOURCE_MAX_CHARACTERS} printable characters"
        )
    return text


def _publish(arguments: argparse.Namespace, settings: Settings) -> int:
    with Report(prints_done=not arguments.json) as report:
        content = _content(arguments.file)
        source = _source_of(arguments.source, content, arguments.execution_id)
        occurrences = list(_occurrences(content, arguments.execution_id))
        settings = replace(
            settings,
            # An error ends the run without waiting for the records that are left.
            publisher=replace(
                settings.publisher, publish_timeout=arguments.timeout, close_timeout=0
            ),
        )
        asyncio.run(_send(settings, occurrences, arguments, source, report))
    return 0


def _content(file: str) -> bytes:
    name = "standard input" if file == "-" else file
    try:
        if file == "-":
            if sys.stdin.isatty():
                note("reading events from the terminal; Ctrl-D ends them")
            content = sys.stdin.buffer.read()
        else:
            content = Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{name}: {error.strerror}: nothing was published; give a readable FILE"
        ) from error
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ExecutionEventsError(
                f"{name}: nothing was published; not a complete gzip file: {error}"
            ) from error
    for mark, encoding in _OTHER_ENCODINGS.items():
        if content.startswith(mark):
            raise ExecutionEventsError(
                f"{name}: nothing was published; the file begins with {encoding}: save it as UTF-8"
                " without a byte order mark"
            )
    return content


def _source_of(given: str | None, content: bytes, execution_id: str | None) -> str:
    """Return the source of the run.

    One that `publish` has printed holds a digest of the events. With other events it would drop
    those whose numbers were sent before.
    """
    digest = hashlib.sha256(content + b"\0" + (execution_id or "").encode(errors="replace"))
    if given is None:
        return f"publish:{uuid.uuid4()}:{digest.hexdigest()[:16]}"
    match = _PRINTED_SOURCE.fullmatch(given)
    if match is not None and not digest.hexdigest().startswith(match[1]):
        raise SettingsError(
            "--source: nothing was published; it was printed for another file or --execution-id:"
            " repeat that command, or publish this file without --source"
        )
    return given


def _occurrences(content: bytes, execution_id: str | None) -> Iterator[Occurrence]:
    """Yield the occurrences of a JSON array or of JSON lines.

    After the last one, raise an error that lists every invalid event.
    """
    errors = []
    nameless = False
    now = now_ms()
    for name, item in _items(content):
        try:
            body = msgspec.json.decode(item)
            if isinstance(body, dict):
                if execution_id is not None:
                    item = msgspec.json.encode({"executionId": execution_id, **body})
                nameless = nameless or (execution_id is None and "executionId" not in body)
            yield wire.decode(None, item, now)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            errors.append(f"{name}: not JSON: {error}")
        except RecordRefusedError as error:
            errors.append(f"{name}: {error.detail}")
    if errors:
        shown = "\n  ".join(errors[:_SHOWN_ERRORS])
        more = f"\n  and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
        remedy = (
            "\nadd --execution-id ID for events without executionId, as in the reader's responses"
            if nameless
            else "\nschemas/event.schema.json describes an event"
        )
        raise ExecutionEventsError(
            f"nothing was published; invalid events:\n  {shown}{more}{remedy}"
        )


def _items(content: bytes) -> Iterator[tuple[str, bytes]]:
    if content.lstrip().startswith(b"["):
        try:
            items = msgspec.json.decode(content, type=list[msgspec.Raw])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ExecutionEventsError(
                f"nothing was published; not a JSON array: {error}: give the complete array"
            ) from error
        for number, item in enumerate(items, 1):
            yield f"event {number}", bytes(item)
        return
    lines = content.splitlines()
    first = next((line.strip() for line in lines if line.strip()), b"")
    if first.startswith(b"{") and not first.endswith(b"}"):
        raise ExecutionEventsError(
            "nothing was published; the first event does not end on its line: put each event on"
            " one line, as `jq -c . FILE` prints them, or all in a JSON array"
        )
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"line {number}", line


async def _send(
    settings: Settings,
    occurrences: list[Occurrence],
    arguments: argparse.Namespace,
    source: str,
    report: Report,
) -> None:
    from execution_events.publisher.record import PendingRecord

    total = len(occurrences)
    begin = 0
    window: list[asyncio.Future[Acknowledged]] = []
    progress = Progress(total)
    again = f"repeat the command with --source {source}"
    try:
        async with AsyncExitStack() as stack:
            delivery = await _opened(stack, settings, source)
            if arguments.source is None:
                note(f"to send the file again, counting nothing twice, {again}")
            for begin in range(0, total, _WINDOW):
                window = []
                for occurrence in occurrences[begin : begin + _WINDOW]:
                    window.append(await delivery.send(PendingRecord.of(occurrence)))
                for number, acknowledgement in enumerate(window, begin + 1):
                    try:
                        position = await acknowledgement
                    except EventError as error:
                        raise ExecutionEventsError(f"event {number}: {error}") from error
                    if arguments.json:
                        report.line(_line(occurrences[number - 1], position))
                    progress.show(number, "acknowledged")
                report.flush()
    finally:
        progress.end()
        acknowledged = begin + sum(map(_succeeded, window))
        left = begin + len(window) - acknowledged
        report.done = f"acknowledged: {acknowledged} events"
        if not window and total:
            report.done = "nothing was published"
        elif acknowledged < total:
            report.done = f"acknowledged: {acknowledged} of {total} events"
            report.done += f"; {left} more may still arrive" if left else ""
            report.remedy = f"to send the rest, counting nothing twice, {again}"


async def _opened(stack: AsyncExitStack, settings: Settings, source: str) -> "DirectDelivery":
    from execution_events.publisher.delivery.direct import DirectDelivery

    timeout = settings.publisher.publish_timeout
    try:
        async with asyncio.timeout(timeout):
            return await stack.enter_async_context(
                DirectDelivery(settings.kafka, settings.publisher, source=source)
            )
    except TimeoutError:
        address = settings.kafka.bootstrap_servers
        raise RetryableError(f"Kafka at {address}: no answer within {timeout:g} s") from None


def _succeeded(acknowledgement: "asyncio.Future[Acknowledged]") -> bool:
    return (
        acknowledgement.done()
        and not acknowledgement.cancelled()
        and acknowledgement.exception() is None
    )


def _line(occurrence: Occurrence, position: "Acknowledged") -> str:
    return msgspec.json.encode(
        {
            "executionId": occurrence.execution_id,
            "name": occurrence.name,
            "partition": position.partition,
            "offset": position.offset,
        }
    ).decode()
