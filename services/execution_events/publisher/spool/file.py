"""The SQLite file of a spool: creation, connection, errors, summary."""

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from execution_events.clock import now_ms
from execution_events.errors import HaltError, RetryableError, SpoolCorruptError, SpoolFullError
from execution_events.publisher.record import HOLD_MS
from execution_events.publisher.spool import queries

_BUSY_TIMEOUT = 10
"""Seconds to wait for another process that reads the file, as `spool list` does."""

# A fork waits for the current statement or transaction, so that the child's copy of a connection,
# which is closed with the child, holds neither an open transaction nor a mutex.
fork_lock = threading.Lock()
os.register_at_fork(
    before=fork_lock.acquire,
    after_in_parent=fork_lock.release,
    after_in_child=fork_lock.release,
)


class Summary(NamedTuple):
    """The contents of a spool file; see `Spool` for the counts.

    `oldest` is the creation time of the oldest record in milliseconds. `errors` has the last error
    of each blocked partition, -1 for all, as far as the owner or the last owner knows.
    """

    source: str
    pending: int
    held: int
    refused: int
    bytes: int
    oldest: int | None
    errors: dict[int, str]


class SpoolFile:
    """The open file of a spool, for the process that opened it and none of its forks.

    Opening checks the whole file; it raises the errors of `Spool`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = os.getpid()
        with translated_errors(path):
            self.connection = connect(path, "rw")
        try:
            with translated_errors(path):
                self._prepare()
        except BaseException:
            self.connection.close()
            raise

    def query(self, sql: str, values: Mapping[str, int]) -> list[Any]:
        """Return the rows of one statement."""
        with fork_lock, translated_errors(self.path):
            return self.connection.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit the statements of the block together, or none of them if it raises."""
        with fork_lock, translated_errors(self.path):
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                # After some errors SQLite has rolled back itself; then this does nothing.
                self.connection.rollback()
                raise

    def free_bytes(self) -> int:
        """Return the free space of the file's disk."""
        with translated_errors(self.path):
            disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize

    @property
    def in_own_process(self) -> bool:
        return self._process == os.getpid()

    def check_process(self) -> None:
        """Raise RuntimeError in a fork of the process that opened the file."""
        if not self.in_own_process:
            raise RuntimeError(
                f"{self.path} belongs to process {self._process}, which this one was forked from: "
                "open a spool after the fork"
            )

    def close(self) -> None:
        self.connection.close()

    def _prepare(self) -> None:
        check_version(self.path, self.connection)
        [verdict] = self.connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise SpoolCorruptError(f"{self.path}: damaged: {' '.join(verdict.split())}")
        for pragma in queries.PRAGMAS:
            self.connection.execute(f"PRAGMA {pragma}")
        self.connection.execute(queries.BLOCKED_TABLE)


def create(path: Path) -> None:
    """Create an empty spool file, readable by its owner alone; `path` appears when it is complete.

    Raises the errors of `Spool`. The caller must fsync the directory.
    """
    with translated_errors(path):
        unfinished = path.with_suffix(".new")
        unfinished.touch(mode=0o600, exist_ok=False)
        with closing(connect(unfinished, "rw")) as connection:
            for pragma in ("page_size = 4096", *queries.PRAGMAS):
                connection.execute(f"PRAGMA {pragma}")
            connection.executescript(queries.SCHEMA)
            connection.execute(queries.INSERT_SOURCE, (uuid.uuid4().urn,))
        unfinished.rename(path)


def summary(path: Path) -> Summary:
    """Return the current contents without changing the file, which may be in use.

    Raises the errors of `Spool`. Does not detect every kind of damage.
    """
    with translated_errors(path), closing(connect(path, "ro")) as connection:
        check_version(path, connection)
        return read_summary(connection, now_ms() - HOLD_MS)


def has_pending(path: Path) -> bool:
    """Return whether the file has records to send; cheaper than `summary`."""
    with translated_errors(path), closing(connect(path, "ro")) as connection:
        check_version(path, connection)
        horizon = now_ms() - HOLD_MS
        [found] = connection.execute(queries.ANY_PENDING, {"horizon": horizon}).fetchone()
        return bool(found)


def check_version(path: Path, connection: sqlite3.Connection) -> None:
    """Raise `SpoolCorruptError` if the file is no spool, `HaltError` if its version is newer."""
    # SQLite would take a file that has lost its contents for a new one, and remove its WAL.
    if path.stat().st_size == 0:
        raise SpoolCorruptError(f"{path}: damaged: empty")
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        raise SpoolCorruptError(f"{path}: damaged: not a spool")
    if version > queries.SCHEMA_VERSION:
        raise HaltError(
            f"{path}: written by a newer version, with schema {version}, expected "
            f"{queries.SCHEMA_VERSION}: drain it with that version"
        )


def read_summary(connection: sqlite3.Connection, horizon: int) -> Summary:
    """Return the contents; records attempted before `horizon`, in ms, count as held."""
    [source] = connection.execute(queries.SOURCE).fetchone()
    pending, held, refused, size, oldest = connection.execute(
        queries.SUMMARY, {"horizon": horizon}
    ).fetchone()
    known = connection.execute(queries.HAS_BLOCKED_TABLE).fetchone()
    errors = dict(connection.execute(queries.BLOCKED).fetchall()) if known else {}
    return Summary(source, pending, held, refused, size, oldest, errors)


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open the file, with `mode` "ro" or "rw", in autocommit mode."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )


@contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Translate errors of SQLite and of the system about `path` to errors of this package."""
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
        # The lower byte is the kind of error; the others distinguish its variants.
        match code & 0xFF:
            case sqlite3.SQLITE_FULL:
                raise SpoolFullError(f"{path}: the disk is full") from error
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                raise SpoolCorruptError(f"{path}: damaged: {error.sqlite_errorname}") from error
        raise RetryableError(f"{path}: cannot be used: {error.sqlite_errorname}") from error
