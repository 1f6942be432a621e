"""One spool file: records on the disk until Kafka has acknowledged them. No asyncio."""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from zlib import crc32

from execution_events.errors import SpoolCorruptError, SpoolFullError
from execution_events.publisher.record import HOLD_MS, NewRecord, now_ms
from execution_events.publisher.spool.file import (
    HELD,
    PRAGMAS,
    REASONS_TABLE,
    ROW_BYTES,
    WAITING,
    between_forks,
    check_version,
    connect,
    read_summary,
    translated,
)

_MOVED_AT_ONCE = 1000
_HOLD_INTERVAL_MS = 60_000
"""Milliseconds between two readings of the whole file for what is to be held by now."""
_RESERVE = 16 * 1024 * 1024
"""Free bytes of the disk that new records leave: to send a record and to forget it are writes too,
so a spool that has filled its disk could not be drained."""

_INSERT = """
INSERT INTO record
    (sequence, partition, attempted_at, checksum, key, value, traceparent, timestamp)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_NEXT = f"""
SELECT checksum, sequence, partition, attempted_at, key, value, traceparent
FROM record WHERE sequence > :given AND {WAITING}
  AND (partition IS NULL OR partition NOT IN ({{skipped}}))
ORDER BY sequence LIMIT :room
"""  # noqa: S608
_OLD = (
    "SELECT sequence FROM record WHERE refused IS NULL AND attempted_at < :horizon AND attempted_at"
)
# Held for good, whatever the clock says later: what follows may have been sent meanwhile, and then
# the sequence is at or below the source's watermark.
_HOLD = "UPDATE record SET attempted_at = 0 WHERE sequence = ?"
_HOLD_ALL = f"UPDATE record SET attempted_at = 0 WHERE attempted_at AND {HELD}"  # noqa: S608
_OLDEST_ATTEMPT = f"SELECT MIN(attempted_at) FROM record WHERE {WAITING}"  # noqa: S608
_CLAIM = "UPDATE record SET partition = ?, attempted_at = ? WHERE sequence = ?"
_DELETE = "DELETE FROM record WHERE sequence = ?"
_REFUSE = "UPDATE record SET refused = ? WHERE sequence = ?"
_ASIDE = f"(refused IS NOT NULL OR {HELD})"
_ASIDE_UP_TO = f"""
SELECT COUNT(*), COUNT(refused), MAX(sequence)
FROM (SELECT sequence, refused FROM record WHERE {_ASIDE} ORDER BY sequence LIMIT :most)
"""  # noqa: S608
_RENEW_COPY = """
INSERT INTO record (checksum, key, value, traceparent, timestamp)
SELECT checksum, key, value, traceparent, timestamp
FROM record WHERE {which} AND sequence <= :up_to ORDER BY sequence
"""
_RENEW_DELETE = "DELETE FROM record WHERE {which} AND sequence <= :up_to"
_STRANDED = f"{WAITING} AND partition >= :partitions"
_STRANDED_UP_TO = f"""
SELECT COUNT(*), MAX(sequence)
FROM (SELECT sequence FROM record WHERE {_STRANDED} ORDER BY sequence LIMIT :most)
"""  # noqa: S608

PartitionOf = Callable[[bytes], int]
"""The partition of a key."""


class SpooledRecord(NamedTuple):
    """A record to send, with the partition and the time, in ms, of its first attempt."""

    sequence: int
    partition: int
    key: bytes
    value: bytes
    traceparent: str | None
    attempted_at: int


class Spool:
    """The records of one file; a context manager that closes it and gives up its lock.

    Whoever opens it holds the file's lock, which `release` gives up. Used by one thread at a time,
    and only by the process that opened it, not by its forks.

    A record is on the disk, fsynced, when `exchange` has returned, and stays there until it is
    acknowledged. Any method that raises has changed nothing but what it says, and the spool can be
    used on. Errors: `SpoolFullError`, `SpoolCorruptError`, and `RetryableError` where the file
    cannot be read or written. Opening also raises `HaltError` for a file of a newer version.

    Opening reads the whole file once to check it.
    """

    path: Path
    source: str
    """`ce_source` of every record, drawn when the file was made: "urn:uuid:…"."""
    left: int
    """How many records are neither acknowledged nor held nor refused."""
    held: int
    """How many were attempted too long ago: consumers may have forgotten which of them they have
    counted. Not given until `accept_duplicates`, whatever the clock says later."""
    refused: int
    """How many Kafka will never take. Not given until `accept_duplicates`."""
    bytes: int
    """What all records take, about. The file is at most twice as big, its WAL takes a few MiB
    more, and both keep the size that they once had."""
    last: int
    """The greatest sequence so far."""
    given: int
    """All records up to this sequence were given since the file was opened, or are not to be, or
    were passed over."""
    reasons: dict[int, str]
    """What was noted last; see `Summary`."""

    def __init__(
        self, path: Path, max_bytes: int, release: Callable[[], None] = lambda: None
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._release = release
        self._process = os.getpid()
        self._horizon = _now() - HOLD_MS
        self._oldest_attempt = inf
        self._in_flight: dict[int, SpooledRecord] = {}
        # By partition that is passed over: nothing of it up to this sequence is to be given.
        self._passed: dict[int, int] = {}
        self._acknowledged: list[int] = []
        with translated(path):
            self._connection = connect(path, "rw")
        try:
            with translated(path):
                self._load()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def exchange(
        self,
        new: Sequence[NewRecord],
        acknowledged: Sequence[int],
        *,
        room: int,
        partition_of: PartitionOf | None,
        passed: Set[int] = frozenset(),
    ) -> list[SpooledRecord]:
        """Forget `acknowledged`, keep `new` in order, and give the next `room` records.

        Records of the partitions `passed` are passed over, until they are not in it any more.

        One transaction and one fsync, none where there is nothing to write. Records are given in
        order of sequence, each once since the file was opened, with its partition stored:
        `partition_of(key)` where it has none yet. Without `partition_of` none are given.

        `acknowledged` is forgotten whatever is raised, at the latest on the disk with the next
        exchange that succeeds; a sequence that is not in flight is passed over. Raises
        `SpoolFullError`, with nothing of `new` kept, where it does not fit or the disk is full.
        """
        self._require_own_process()
        self._forget(acknowledged)
        size = sum(map(_size, new))
        full = self._full(size) if new else None
        if full is not None:
            new, room, size = (), 0, 0
        now = _now()
        self._hold_old(now)
        claims: list[tuple[int, int, int]] = []
        rows: list[tuple[Any, ...]] = []
        give: list[SpooledRecord] = []
        given = self.given
        if partition_of is not None:
            given, forgotten = self._pass(passed), set(self._acknowledged)
            if len(self._in_flight) == self.left:
                given = self.last
            while given < self.last and (wanted := room - len(give)) > 0:
                found = self._next(given, wanted, passed)
                for given, partition, attempted_at, key, value, traceparent in found:
                    if partition is None:
                        partition, attempted_at = partition_of(key), now
                        if partition in passed:
                            continue
                        claims.append((partition, now, given))
                    if given not in self._in_flight and given not in forgotten:
                        give.append(
                            SpooledRecord(given, partition, key, value, traceparent, attempted_at)
                        )
                if len(found) < wanted:
                    given = self.last
        last = self.last
        for record in new:
            fields = record.key, record.value, record.traceparent
            # What waits has all been taken where there is still room.
            taken = partition_of is not None and given == last and len(give) < room
            last += 1
            partition = None
            if taken and partition_of is not None:
                given = last
                partition = partition_of(record.key)
            if partition is None or partition in passed:
                rows.append((last, None, None, _checksum(record), *fields, record.timestamp))
            else:
                give.append(SpooledRecord(last, partition, *fields, now))
                rows.append((last, partition, now, _checksum(record), *fields, record.timestamp))
        if self._acknowledged or claims or rows:
            with self._transaction() as connection:
                connection.executemany(_DELETE, [(done,) for done in self._acknowledged])
                connection.executemany(_CLAIM, claims)
                connection.executemany(_INSERT, rows)
        self._acknowledged.clear()
        self._in_flight |= {record.sequence: record for record in give}
        self.last = last
        self.given = last if len(self._in_flight) == self.left + len(rows) else given
        self.left += len(rows)
        self.bytes += size
        if full is not None:
            raise SpoolFullError(f"{self.path}: {full}")
        return give

    def refuse(self, sequence: int, detail: str) -> None:
        """Keep a record in flight that Kafka will never take, but do not give it again.

        `detail` says why, and holds nothing of the record. A sequence that is not in flight is
        passed over.
        """
        self._require_own_process()
        if sequence in self._in_flight:
            with self._transaction() as connection:
                connection.execute(_REFUSE, (detail, sequence))
            del self._in_flight[sequence]
            self.left -= 1
            self.refused += 1

    def hold(self, sequences: Sequence[int]) -> None:
        """Hold records that were given, and were attempted too long ago to be sent again.

        A sequence that is not in flight is passed over.
        """
        self._require_own_process()
        held = [sequence for sequence in sequences if sequence in self._in_flight]
        if held:
            self._hold(held)
            for sequence in held:
                del self._in_flight[sequence]

    def take_back(self, sequences: Iterable[int]) -> None:
        """Take records that were given, and will not be sent now, as not given yet.

        A sequence that is not in flight is passed over.
        """
        self._require_own_process()
        for sequence in sequences:
            record = self._in_flight.pop(sequence, None)
            if record is not None:
                self._oldest_attempt = min(self._oldest_attempt, record.attempted_at)
                self.given = min(self.given, sequence - 1)

    def note_reasons(self, reasons: Mapping[int, str]) -> None:
        """Keep why records wait, by partition, for `summary`; see there."""
        self._require_own_process()
        if reasons != self.reasons:
            with self._transaction() as connection:
                connection.execute("DELETE FROM waits")
                connection.executemany("INSERT INTO waits VALUES (?, ?)", list(reasons.items()))
            self.reasons = dict(reasons)

    def accept_duplicates(self) -> int:
        """Give what is held or refused after all, and return how many records that are.

        They get new sequences at the end, in their order, and count again where they were counted
        before. Where it raises, some may have been moved; the others are moved by the next call.
        """
        self._require_own_process()
        moved = 0
        which: dict[str, int] = {"horizon": self._horizon, "most": _MOVED_AT_ONCE}
        while self.held or self.refused:
            with self._transaction() as connection:
                number, refused, which["up_to"] = connection.execute(_ASIDE_UP_TO, which).fetchone()
                _renew(connection, _ASIDE, which)
            moved += number
            self.refused -= refused
            self.held -= number - refused
            self.left += number
            self.last += number
        return moved

    def accept_partitions(self, partitions: int) -> int:
        """Give what was attempted to a partition from `partitions` on to others after all.

        Only before anything was given; else like `accept_duplicates`.
        """
        self._require_own_process()
        which = {"horizon": self._horizon, "most": _MOVED_AT_ONCE, "partitions": partitions}
        moved = 0
        while True:
            with self._transaction() as connection:
                number, which["up_to"] = connection.execute(_STRANDED_UP_TO, which).fetchone()
                if not number:
                    return moved
                _renew(connection, _STRANDED, which)
            moved += number
            self.last += number

    def close(self) -> None:
        """Close the file and give up its lock. Further calls, and calls in a fork, do nothing."""
        if self._process == os.getpid():
            self._connection.close()
            self._release()
            self._release = lambda: None

    def _load(self) -> None:
        connection = self._connection
        check_version(self.path, connection)
        [verdict] = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise SpoolCorruptError(f"{self.path}: damaged: {' '.join(verdict.split())}")
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(REASONS_TABLE)
        summary = read_summary(connection, self._horizon)
        self.source, self.left, self.held, self.refused, self.bytes, _, self.reasons = summary
        self._oldest_attempt = self._find_oldest_attempt()
        with self._transaction():
            connection.execute(_HOLD_ALL, {"horizon": self._horizon})
        last = connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = 'record'"
        ).fetchone()
        self.last = 0 if last is None else last[0]
        self.given = 0 if self.left else self.last

    def _full(self, size: int) -> str | None:
        """Why so many bytes more are too many, None if they are not."""
        if self.bytes + size > self._max_bytes:
            return f"full: it holds {self.bytes} bytes"
        with translated(self.path):
            disk = os.statvfs(self.path)
        if disk.f_bavail * disk.f_frsize < _RESERVE + 2 * size:
            return "the disk is nearly full"
        return None

    def _forget(self, acknowledged: Sequence[int]) -> None:
        for sequence in acknowledged:
            record = self._in_flight.pop(sequence, None)
            if record is not None:
                self._acknowledged.append(sequence)
                self.left -= 1
                self.bytes -= _size(record)

    def _pass(self, passed: Set[int]) -> int:
        """Note which partitions are passed over from now on; where to go on giving."""
        given = self.given
        for partition in [partition for partition in self._passed if partition not in passed]:
            given = min(given, self._passed.pop(partition))
        for partition in passed:
            self._passed[partition] = min(given, self._passed.get(partition, given))
        self.given = given
        return given

    def _next(self, given: int, number: int, passed: Set[int]) -> list[tuple[Any, ...]]:
        """The next `number` records after `given`, also those in flight or forgotten just now.

        Those of the partitions `passed` only where they have no partition yet.
        """
        skipped = ", ".join(map(str, sorted(passed)))
        place = {"given": given, "horizon": self._horizon, "room": number}
        with between_forks, translated(self.path):
            found = self._connection.execute(_NEXT.format(skipped=skipped), place).fetchall()
        for checksum, sequence, _, _, key, value, _ in found:
            if checksum != crc32(value, crc32(key)):
                raise SpoolCorruptError(f"{self.path}: damaged: record {sequence}")
        return [record for _, *record in found]

    def _hold_old(self, now: int) -> None:
        """Hold what was attempted too long ago by now, but for what is in flight."""
        horizon = now - HOLD_MS
        due = max(self._oldest_attempt, self._horizon + _HOLD_INTERVAL_MS)
        if due < horizon or self._oldest_attempt < self._horizon:
            horizon = max(horizon, self._horizon)
            with between_forks, translated(self.path):
                found = self._connection.execute(_OLD, {"horizon": horizon}).fetchall()
            there = {*self._in_flight, *self._acknowledged}
            self._hold([sequence for [sequence] in found if sequence not in there])
            self._horizon = horizon
            self._oldest_attempt = self._find_oldest_attempt()

    def _hold(self, sequences: Sequence[int]) -> None:
        with self._transaction() as connection:
            connection.executemany(_HOLD, [(sequence,) for sequence in sequences])
        self.left -= len(sequences)
        self.held += len(sequences)

    def _find_oldest_attempt(self) -> float:
        with between_forks, translated(self.path):
            [oldest] = self._connection.execute(
                _OLDEST_ATTEMPT, {"horizon": self._horizon}
            ).fetchone()
        return inf if oldest is None else float(oldest)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with between_forks, translated(self.path):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has done so itself after some errors; then this does nothing.
                self._connection.rollback()
                raise

    def _require_own_process(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                f"{self.path} belongs to process {self._process}, which this one was forked from: "
                "open a spool after the fork"
            )


def _renew(connection: sqlite3.Connection, which: str, values: Mapping[str, int]) -> None:
    """Have the records `which`, up to `up_to` of `values`, be new ones at the end."""
    connection.execute(_RENEW_COPY.format(which=which), values)
    connection.execute(_RENEW_DELETE.format(which=which), values)


def _checksum(record: NewRecord) -> int:
    return crc32(record.value, crc32(record.key))


def _size(record: NewRecord | SpooledRecord) -> int:
    return len(record.key) + len(record.value) + len(record.traceparent or "") + ROW_BYTES


def _now() -> int:
    return now_ms()
