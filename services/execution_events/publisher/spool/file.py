"""The file of a spool: its tables, its connections, its errors, and what it holds."""

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from execution_events.errors import HaltError, RetryableError, SpoolCorruptError, SpoolFullError
from execution_events.publisher.record import HOLD_MS, now_ms

SCHEMA_VERSION = 1

_BUSY_TIMEOUT = 10
"""Seconds to wait for another process that reads the file, as `spool list` does."""
ROW_BYTES = 32
"""What a row takes apart from its contents, about."""

PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    # On macOS fsync alone leaves data in the drive's cache.
    "fullfsync = ON",
    "checkpoint_fullfsync = ON",
    "wal_autocheckpoint = 1000",
    "secure_delete = OFF",
)
# Not in all files of this version: a table that only adds to it leaves them as good as they are.
REASONS_TABLE = """
CREATE TABLE IF NOT EXISTS waits (
    -- Why records wait, as far as it is known; partition -1: those of all.
    partition INTEGER PRIMARY KEY,
    reason TEXT NOT NULL
)
"""
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
{REASONS_TABLE};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
HELD = "refused IS NULL AND attempted_at < :horizon"
WAITING = "refused IS NULL AND (attempted_at IS NULL OR attempted_at >= :horizon)"
_SUMMARY = f"""
SELECT COUNT(*) FILTER (WHERE {WAITING}) AS "left",
       COUNT(*) FILTER (WHERE {HELD}) AS held,
       COUNT(refused) AS refused,
       COALESCE(SUM(LENGTH(key) + LENGTH(value) + COALESCE(LENGTH(traceparent), 0)
                    + {ROW_BYTES}), 0) AS bytes,
       MIN(timestamp) AS oldest
FROM record
"""  # noqa: S608
_ANY_LEFT = f"SELECT EXISTS (SELECT 1 FROM record WHERE {WAITING})"  # noqa: S608
_REASONS = "SELECT partition, reason FROM waits ORDER BY partition"

# A fork waits for the statement or transaction under way, so that the child's copy of a connection,
# which is closed with the child, holds neither half of one nor a mutex.
between_forks = threading.Lock()
os.register_at_fork(
    before=between_forks.acquire,
    after_in_parent=between_forks.release,
    after_in_child=between_forks.release,
)


class Summary(NamedTuple):
    """What a spool file holds; see `Spool`. `oldest` is the least timestamp in ms, if any.

    `reasons` tells why records of a partition wait, or -1 for all, as far as its owner knows or
    the last one knew.
    """

    source: str
    left: int
    held: int
    refused: int
    bytes: int
    oldest: int | None
    reasons: dict[int, str]


def create(path: Path) -> None:
    """Make an empty spool file, readable by its owner alone; `path` appears when it is complete.

    Raises the errors of `Spool`. Whoever calls it fsyncs the directory.
    """
    with translated(path):
        unfinished = path.with_suffix(".new")
        unfinished.touch(mode=0o600, exist_ok=False)
        with closing(connect(unfinished, "rw")) as connection:
            for pragma in ("page_size = 4096", *PRAGMAS):
                connection.execute(f"PRAGMA {pragma}")
            connection.executescript(_SCHEMA)
            connection.execute("INSERT INTO spool VALUES (?)", (uuid.uuid4().urn,))
        unfinished.rename(path)


def summary(path: Path) -> Summary:
    """What the file holds now, without changing it; its owner may be at work.

    Raises the errors of `Spool`. Not every damage is seen.
    """
    with translated(path), closing(connect(path, "ro")) as connection:
        check_version(path, connection)
        return read_summary(connection, now_ms() - HOLD_MS)


def has_left(path: Path) -> bool:
    """Whether `Spool.left` would not be 0, at little cost; else like `summary`."""
    with translated(path), closing(connect(path, "ro")) as connection:
        check_version(path, connection)
        [found] = connection.execute(_ANY_LEFT, {"horizon": now_ms() - HOLD_MS}).fetchone()
        return bool(found)


def check_version(path: Path, connection: sqlite3.Connection) -> None:
    """Raise `SpoolCorruptError` for what is no spool, `HaltError` for one of a newer version."""
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


def read_summary(connection: sqlite3.Connection, horizon: int) -> Summary:
    """Read what the file holds; held is what was attempted before `horizon`, in ms."""
    [source] = connection.execute("SELECT source FROM spool").fetchone()
    left, held, refused, size, oldest = connection.execute(
        _SUMMARY, {"horizon": horizon}
    ).fetchone()
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'waits'").fetchone()
    reasons = dict(connection.execute(_REASONS).fetchall()) if known else {}
    return Summary(source, left, held, refused, size, oldest, reasons)


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open the file, with `mode` "ro" or "rw"; transactions are begun by hand."""
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
