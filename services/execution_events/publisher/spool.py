"""One spool file: records on the disk until Kafka has acknowledged them. No asyncio."""

import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from zlib import crc32

from execution_events.errors import HaltError, RetryableError, SpoolCorruptError, SpoolFullError
from execution_events.publisher.record import NewRecord

SCHEMA_VERSION = 1
HOLD_MS = 30 * 24 * 3600 * 1000
"""How long after its first attempt a record may be sent again, in milliseconds: half of the time
for which consumers remember a source that sends nothing."""

_BUSY_TIMEOUT = 10
"""Seconds to wait for another process that reads the file, as `spool list` does."""
_ROW_BYTES = 32
"""What a row takes apart from its contents, about."""
_MOVED_AT_ONCE = 1000
_RESERVE = 16 * 1024 * 1024
"""Free bytes of the disk that new records leave: to send a record and to forget it are writes too,
so a spool that has filled its disk could not be drained."""

_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    # On macOS fsync alone leaves data in the drive's cache.
    "fullfsync = ON",
    "checkpoint_fullfsync = ON",
    "wal_autocheckpoint = 1000",
    "secure_delete = OFF",
)
_SCHEMA = f"""
BEGIN;
CREATE TABLE spool (source TEXT NOT NULL);
CREATE TABLE record (
    -- ce_sequence. AUTOINCREMENT: the number of a record that was deleted never comes again.
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Both NULL until the record is given for the first time, and then never changed.
    partition INTEGER,
    attempted_at INTEGER,
    -- Why Kafka will never take it; NULL for all others.
    refused TEXT,
    -- CRC-32 of key and value: SQLite would not see that their bytes have changed.
    checksum INTEGER NOT NULL,
    key BLOB NOT NULL,
    value BLOB NOT NULL,
    traceparent TEXT,
    timestamp INTEGER NOT NULL
);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_HELD = "refused IS NULL AND attempted_at < :horizon"
_WAITING = "refused IS NULL AND (attempted_at IS NULL OR attempted_at >= :horizon)"
_SUMMARY = f"""
SELECT COUNT(*) FILTER (WHERE {_WAITING}) AS "left",
       COUNT(*) FILTER (WHERE {_HELD}) AS held,
       COUNT(refused) AS refused,
       COALESCE(SUM(LENGTH(key) + LENGTH(value) + COALESCE(LENGTH(traceparent), 0)
                    + {_ROW_BYTES}), 0) AS bytes,
       MIN(timestamp) AS oldest
FROM record
"""  # noqa: S608
_ANY_LEFT = f"SELECT EXISTS (SELECT 1 FROM record WHERE {_WAITING})"  # noqa: S608
_INSERT = """
INSERT INTO record
    (sequence, partition, attempted_at, checksum, key, value, traceparent, timestamp)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_NEXT = f"""
SELECT checksum, sequence, partition, key, value, traceparent, timestamp
FROM record WHERE sequence > :given AND {_WAITING} ORDER BY sequence LIMIT :room
"""  # noqa: S608
_CLAIM = "UPDATE record SET partition = ?, attempted_at = ? WHERE sequence = ?"
_DELETE = "DELETE FROM record WHERE sequence = ?"
_REFUSE = "UPDATE record SET refused = ? WHERE sequence = ?"
_ASIDE = f"(refused IS NOT NULL OR {_HELD})"
_ASIDE_UP_TO = f"""
SELECT COUNT(*), COUNT(refused), MAX(sequence)
FROM (SELECT sequence, refused FROM record WHERE {_ASIDE} ORDER BY sequence LIMIT :most)
"""  # noqa: S608
_ASIDE_COPY = f"""
INSERT INTO record (checksum, key, value, traceparent, timestamp)
SELECT checksum, key, value, traceparent, timestamp
FROM record WHERE {_ASIDE} AND sequence <= :up_to ORDER BY sequence
"""  # noqa: S608
_ASIDE_DELETE = f"DELETE FROM record WHERE {_ASIDE} AND sequence <= :up_to"  # noqa: S608

PartitionOf = Callable[[bytes], int]
"""The partition of a key."""

# A fork waits for the statement or transaction under way, so that the child's copy of a connection,
# which is closed with the child, holds neither half of one nor a mutex.
between_forks = threading.Lock()
os.register_at_fork(
    before=between_forks.acquire,
    after_in_parent=between_forks.release,
    after_in_child=between_forks.release,
)


class SpooledRecord(NamedTuple):
    """A record to send, with the partition of its first attempt. `timestamp` is in ms."""

    sequence: int
    partition: int
    key: bytes
    value: bytes
    traceparent: str | None
    timestamp: int


class Summary(NamedTuple):
    """What a spool file holds; see `Spool`. `oldest` is the least timestamp in ms, if any."""

    source: str
    left: int
    held: int
    refused: int
    bytes: int
    oldest: int | None


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
    """How many were attempted too long ago when the file was opened: consumers may have forgotten
    which of them they have counted. Not given until `accept_duplicates`."""
    refused: int
    """How many Kafka will never take. Not given until `accept_duplicates`."""
    bytes: int
    """What all records take, about. The file is at most twice as big, its WAL takes a few MiB
    more, and both keep the size that they once had."""
    last: int
    """The greatest sequence so far."""
    given: int
    """All records up to this sequence were given since the file was opened, or are not to be."""

    def __init__(
        self, path: Path, max_bytes: int, release: Callable[[], None] = lambda: None
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._release = release
        self._process = os.getpid()
        self._horizon = _now() - HOLD_MS
        self._in_flight: dict[int, int] = {}
        self._acknowledged: list[int] = []
        with translated(path):
            self._connection = _connect(path, "rw")
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
    ) -> list[SpooledRecord]:
        """Forget `acknowledged`, keep `new` in order, and give the next `room` records.

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
        waiting = self.left - len(self._in_flight)
        claims: list[tuple[int, int, int]] = []
        rows: list[tuple[Any, ...]] = []
        give: list[SpooledRecord] = []
        if partition_of is not None:
            for sequence, partition, *content in self._next(min(room, waiting)):
                if partition is None:
                    partition = partition_of(content[0])
                    claims.append((partition, now, sequence))
                give.append(SpooledRecord(sequence, partition, *content))
        last = self.last
        for record in new:
            fields = record.key, record.value, record.traceparent, record.timestamp
            last += 1
            # What waits has all been taken where there is still room.
            if partition_of is not None and len(give) < room:
                partition = partition_of(record.key)
                give.append(SpooledRecord(last, partition, *fields))
                rows.append((last, partition, now, _checksum(record), *fields))
            else:
                rows.append((last, None, None, _checksum(record), *fields))
        if self._acknowledged or claims or rows:
            with self._transaction() as connection:
                connection.executemany(_DELETE, [(done,) for done in self._acknowledged])
                connection.executemany(_CLAIM, claims)
                connection.executemany(_INSERT, rows)
        self._acknowledged.clear()
        self._in_flight |= {record.sequence: _size(record) for record in give}
        self.last = last
        self.left += len(rows)
        self.bytes += size
        if len(self._in_flight) == self.left:
            self.given = self.last
        elif give:
            self.given = give[-1].sequence
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
                connection.execute(_ASIDE_COPY, which)
                connection.execute(_ASIDE_DELETE, which)
            moved += number
            self.refused -= refused
            self.held -= number - refused
            self.left += number
            self.last += number
        return moved

    def close(self) -> None:
        """Close the file and give up its lock. Further calls, and calls in a fork, do nothing."""
        if self._process == os.getpid():
            self._connection.close()
            self._release()
            self._release = lambda: None

    def _load(self) -> None:
        connection = self._connection
        _check_version(self.path, connection)
        [verdict] = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise SpoolCorruptError(f"{self.path}: damaged: {' '.join(verdict.split())}")
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        summary = _summary(connection, self._horizon)
        self.source, self.left, self.held, self.refused, self.bytes, _ = summary
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
            size = self._in_flight.pop(sequence, None)
            if size is not None:
                self._acknowledged.append(sequence)
                self.left -= 1
                self.bytes -= size

    def _next(self, room: int) -> Iterator[tuple[Any, ...]]:
        if room > 0:
            place = {"given": self.given, "horizon": self._horizon, "room": room}
            with between_forks, translated(self.path):
                found = self._connection.execute(_NEXT, place).fetchall()
            for checksum, *record in found:
                if checksum != crc32(record[3], crc32(record[2])):
                    raise SpoolCorruptError(f"{self.path}: damaged: record {record[0]}")
                yield tuple(record)

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


def create(path: Path) -> None:
    """Make an empty spool file, readable by its owner alone; `path` appears when it is complete.

    Raises the errors of `Spool`. Whoever calls it fsyncs the directory.
    """
    with translated(path):
        unfinished = path.with_suffix(".new")
        unfinished.touch(mode=0o600, exist_ok=False)
        with closing(_connect(unfinished, "rw")) as connection:
            for pragma in ("page_size = 4096", *_PRAGMAS):
                connection.execute(f"PRAGMA {pragma}")
            connection.executescript(_SCHEMA)
            connection.execute("INSERT INTO spool VALUES (?)", (uuid.uuid4().urn,))
        unfinished.rename(path)


def summary(path: Path) -> Summary:
    """What the file holds now, without changing it; its owner may be at work.

    Raises the errors of `Spool`. Not every damage is seen.
    """
    with translated(path), closing(_connect(path, "ro")) as connection:
        _check_version(path, connection)
        return _summary(connection, _now() - HOLD_MS)


def has_left(path: Path) -> bool:
    """Whether `Spool.left` would not be 0, at little cost; else like `summary`."""
    with translated(path), closing(_connect(path, "ro")) as connection:
        _check_version(path, connection)
        [found] = connection.execute(_ANY_LEFT, {"horizon": _now() - HOLD_MS}).fetchone()
        return bool(found)


def _summary(connection: sqlite3.Connection, horizon: int) -> Summary:
    [source] = connection.execute("SELECT source FROM spool").fetchone()
    return Summary(source, *connection.execute(_SUMMARY, {"horizon": horizon}).fetchone())


def _check_version(path: Path, connection: sqlite3.Connection) -> None:
    # SQLite would take a file that has lost its contents for a new one, and remove its WAL.
    if path.stat().st_size == 0:
        raise SpoolCorruptError(f"{path}: damaged: empty")
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        raise SpoolCorruptError(f"{path}: damaged: no spool")
    if version > SCHEMA_VERSION:
        raise HaltError(
            f"{path}: written by a newer version, with schema {version} where this one knows "
            f"{SCHEMA_VERSION}: drain it with that version"
        )


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the system about `path`, as errors of this package."""
    try:
        yield
    except OSError as error:
        raise RetryableError(f"{error.filename or path}: {error.strerror}") from error
    except sqlite3.Error as error:
        code: int | None = getattr(error, "sqlite_errorcode", None)
        if code is None:
            if isinstance(error, sqlite3.OperationalError):  # A text is not UTF-8.
                raise SpoolCorruptError(f"{path}: damaged: {type(error).__name__}") from error
            raise
        # The lower byte is the kind of error; the others tell its variants apart.
        match code & 0xFF:
            case sqlite3.SQLITE_FULL:
                raise SpoolFullError(f"{path}: the disk is full") from error
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                raise SpoolCorruptError(f"{path}: damaged: {error.sqlite_errorname}") from error
        raise RetryableError(f"{path}: cannot be used: {error.sqlite_errorname}") from error


def _checksum(record: NewRecord) -> int:
    return crc32(record.value, crc32(record.key))


def _size(record: NewRecord | SpooledRecord) -> int:
    return len(record.key) + len(record.value) + len(record.traceparent or "") + _ROW_BYTES


def _now() -> int:
    return time.time_ns() // 1_000_000
