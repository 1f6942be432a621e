"""Spools as text for a person and as JSON."""

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from execution_events.publisher.delivery.sender import EVERY_PARTITION
from execution_events.publisher.spool.directory import SpoolInfo


def _state(info: SpoolInfo) -> str:
    if info.set_aside:
        return "set_aside"
    return "in_use" if info.owned else "left_behind"


def json_line(info: SpoolInfo) -> str:
    """Return a spool as a JSON object."""
    found = info.summary
    return msgspec.json.encode(
        {
            "path": str(info.path),
            "state": _state(info),
            "problem": info.problem,
            "source": found and found.source,
            "pending": found and found.pending,
            "held": found and found.held,
            "refused": found and found.refused,
            "bytes": found and found.bytes,
            "oldest": found and _moment(found.oldest),
            "blocked": found
            and [
                {"partitions": partitions, "error": error}
                for error, partitions in _blocked(found.errors)
            ],
        }
    ).decode()


def line(info: SpoolInfo) -> str:
    """Return a spool as a line, and a line for each error that blocks it."""
    start = f"{info.path}  {_state(info).replace('_', ' ')}"
    if info.summary is None:
        return f"{start}  {info.problem}"
    source, pending, held, refused, size, oldest, errors = info.summary
    since = "" if oldest is None else f"  oldest {_moment(oldest)}"
    counts = f"pending {pending}  held {held}  refused {refused}  bytes {size}"
    return "\n".join([f"{start}  {counts}{since}  {source}", *error_lines(errors)])


def _blocked(errors: Mapping[int, str]) -> list[tuple[str, list[int]]]:
    """Return each error with the partitions it blocks, or once with none if it blocks all."""
    if (error := errors.get(EVERY_PARTITION)) is not None:
        return [(error, [])]
    blocked: dict[str, list[int]] = {}
    for partition, error in sorted(errors.items()):
        blocked.setdefault(error, []).append(partition)
    return list(blocked.items())


def error_lines(errors: Mapping[int, str]) -> list[str]:
    """Return a line for each error, with the partitions that it blocks."""
    lines = []
    for error, partitions in _blocked(errors):
        named = "partitions" if len(partitions) > 1 else "partition"
        where = f" in {named} {', '.join(map(str, partitions))}" if partitions else ""
        lines.append(f"  blocked{where}: {error}")
    return lines


def _moment(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return f"{datetime.fromtimestamp(milliseconds // 1000, UTC):%FT%TZ}"
