"""Records of one spool file, each unlike any other, and how to store and fetch them."""

import sqlite3
from pathlib import Path

from msgspec.structs import replace

from execution_events.clock import now_ms
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.spool import Spool

MAX_BYTES = 64 * 1024 * 1024
HOLD_MS = 30 * 24 * 60 * 60 * 1000
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def record(number: int, size: int = 0) -> PendingRecord:
    """A record unlike any other, with `size` additional bytes."""
    return PendingRecord(b"key-%d" % (number % 7), b"%d " % number + b"x" * size, None, number)


def assigned(new: PendingRecord, sequence: int, partition: int) -> PendingRecord:
    """The record as it is fetched, without the time of its first attempt."""
    return replace(new, sequence=sequence, partition=partition, attempted_at=0)


def timeless(fetched: list[PendingRecord]) -> list[PendingRecord]:
    """The records without `attempted_at`, which must be a moment ago."""
    assert all(0 <= now_ms() - record.attempted_at < 60_000 for record in fetched)
    return [replace(record, attempted_at=0) for record in fetched]


def number_of(fetched: PendingRecord) -> int:
    return int(fetched.value.split()[0])


def partition_of(key: bytes) -> int:
    return int(key.removeprefix(b"key-"))


def put(spool: Spool, *numbers: int, size: int = 0) -> None:
    spool.commit([record(n, size) for n in numbers], [], limit=0, partition_of=None)


def take(
    spool: Spool, limit: int = 1000, acknowledged: tuple[int, ...] = ()
) -> list[PendingRecord]:
    return spool.commit([], acknowledged, limit=limit, partition_of=partition_of)


def age(path: Path, milliseconds: int) -> None:
    """Move all attempts into the past; the file must be closed."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE record SET attempted_at = attempted_at - ?", [milliseconds])
    connection.close()
