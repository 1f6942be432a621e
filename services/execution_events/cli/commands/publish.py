"""`publish`: events from a file or standard input."""

import argparse
import asyncio
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from execution_events import wire
from execution_events.cli.arguments import seconds
from execution_events.cli.progress import Progress
from execution_events.clock import now_ms
from execution_events.errors import ExecutionEventsError, RecordRefusedError, RetryableError
from execution_events.events import Occurrence
from execution_events.publisher.delivery.direct import DirectDelivery
from execution_events.publisher.delivery.sender import Acknowledged
from execution_events.publisher.record import PendingRecord
from execution_events.settings import Settings

_WINDOW = 10_000
"""Maximum number of unacknowledged records."""
_SHOWN_ERRORS = 10


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    publish = commands.add_parser(
        "publish",
        help="publish events from a file or standard input",
        description="Publish events: a JSON array, or one JSON object per line, each as in "
        "schemas/event.schema.json or in the reader's responses. Nothing is published unless all "
        "are valid. Each run publishes new occurrences: a file published twice counts twice.",
    )
    publish.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="file; - (default) is standard input"
    )
    publish.add_argument("--execution-id", metavar="ID", help="execution id of events without one")
    publish.add_argument(
        "--timeout",
        type=seconds,
        default=60,
        metavar="SECONDS",
        help="timeout for Kafka in seconds (default: %(default)s)",
    )
    publish.add_argument(
        "--json", action="store_true", help="print each acknowledged record as a JSON object"
    )
    publish.set_defaults(run=_publish)


def _publish(arguments: argparse.Namespace, settings: Settings) -> int:
    try:
        file = arguments.file
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise ExecutionEventsError(f"{arguments.file}: {error.strerror}") from error
    occurrences = list(_occurrences(content, arguments.execution_id))
    return asyncio.run(_send(settings, occurrences, arguments.timeout, as_json=arguments.json))


def _occurrences(content: bytes, execution_id: str | None) -> Iterator[Occurrence]:
    """Yield the occurrences of a JSON array or of JSON lines.

    After the last one, raise an error that lists every invalid event.
    """
    errors = []
    now = now_ms()
    for name, item in _items(content):
        try:
            body = msgspec.json.decode(item)
            if isinstance(body, dict) and execution_id is not None:
                item = msgspec.json.encode({"executionId": execution_id, **body})
            yield wire.decode(None, item, now)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            errors.append(f"{name}: not JSON: {error}")
        except RecordRefusedError as error:
            errors.append(f"{name}: {error.detail}")
    if errors:
        shown = "\n  ".join(errors[:_SHOWN_ERRORS])
        more = f"\n  and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
        raise ExecutionEventsError(f"nothing was published; invalid events:\n  {shown}{more}")


def _items(content: bytes) -> Iterator[tuple[str, bytes]]:
    if content.lstrip().startswith(b"["):
        try:
            items = msgspec.json.decode(content, type=list[msgspec.Raw])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ExecutionEventsError(f"not a JSON array: {error}") from error
        for number, item in enumerate(items, 1):
            yield f"event {number}", bytes(item)
    else:
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                yield f"line {number}", line


async def _send(
    settings: Settings, occurrences: list[Occurrence], timeout: float, *, as_json: bool
) -> int:
    acknowledged = sent = 0
    progress = Progress(len(occurrences))
    publisher = replace(settings.publisher, publish_timeout=timeout, close_timeout=1)
    try:
        async with DirectDelivery(settings.kafka, publisher) as delivery:
            for begin in range(0, len(occurrences), _WINDOW):
                window = [
                    (occurrence, await delivery.send(PendingRecord.of(occurrence)))
                    for occurrence in occurrences[begin : begin + _WINDOW]
                ]
                sent += len(window)
                for occurrence, acknowledgement in window:
                    position = await acknowledgement
                    acknowledged += 1
                    if as_json:
                        print(_line(occurrence, position))
                    progress.show(acknowledged, "acknowledged")
    except RetryableError as error:
        raise ExecutionEventsError(
            f"{error}; {acknowledged} of {len(occurrences)} events were acknowledged"
            + (f"; {sent - acknowledged} more may still arrive" if sent else "")
        ) from error
    finally:
        progress.end()
    if not as_json:
        print(f"acknowledged: {acknowledged} events")
    return 0


def _line(occurrence: Occurrence, position: Acknowledged) -> str:
    return msgspec.json.encode(
        {
            "executionId": occurrence.execution_id,
            "name": occurrence.name,
            "partition": position.partition,
            "offset": position.offset,
        }
    ).decode()
