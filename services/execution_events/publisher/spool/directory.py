"""The spool files of one directory: their owners, and the adoption of files without one.

`spool-<hex>.db` is a spool, with SQLite's `-wal` and `-shm` files. Its owner holds a lock on
`spool-<hex>.lock`, which is never removed. A damaged file is kept as
`spool-<hex>.db.corrupt-<time>`. The directory must be on a local file system, for SQLite's WAL.
"""

import fcntl
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from execution_events.errors import ExecutionEventsError, RetryableError, SpoolCorruptError
from execution_events.logs import Logger
from execution_events.publisher.spool.file import (
    Summary,
    create,
    fork_lock,
    has_pending,
    summary,
    translated_errors,
)
from execution_events.publisher.spool.spool import Spool

_log = Logger(__name__)

_SPOOLS = "spool-*.db"
_CORRUPT = "spool-*.db.corrupt-*"
_SUFFIXES = ("-wal", "-shm")


class SpoolInfo(NamedTuple):
    """One spool file of a directory.

    `problem` describes a file that cannot be read, damaged or of a newer version; its `summary` is
    None. `set_aside` marks a damaged file that is no longer used.
    """

    path: Path
    owned: bool
    set_aside: bool
    summary: Summary | None
    problem: str | None


def open_spool(directory: Path, max_bytes: int) -> Spool:
    """Return a spool of `directory` that this process alone owns.

    Adopts the first spool without an owner, for example of a killed process, preferably one with
    records to send; otherwise creates one. A missing directory is created, readable by its owner
    alone. Damaged files are set aside and other unusable ones are skipped; each is logged as an
    error.

    Raises `RetryableError` when the directory or its disk cannot be used.
    """
    with translated_errors(directory):
        _create_directory(directory)
        # Concurrent processes can change which spool is chosen, and nothing else.
        for path in sorted(spools(directory), key=_is_empty):
            try:
                spool = adopt(path, max_bytes)
            except SpoolCorruptError:
                continue
            except ExecutionEventsError as error:
                _log.error("spool_skipped", path=str(path), error=str(error))
                continue
            if spool is not None:
                return spool
        return _create(directory, max_bytes)


def replace(spool: Spool, max_bytes: int) -> Spool:
    """Set the damaged `spool` aside and open another one of its directory."""
    set_aside(spool)
    return open_spool(spool.path.parent, max_bytes)


def set_aside(spool: Spool) -> Path:
    """Rename the file of the damaged `spool`, close it, and return its new path."""
    with translated_errors(spool.path):
        aside = _set_aside(spool.path, "damaged while in use")
    spool.close()
    return aside


def adopt(path: Path, max_bytes: int) -> Spool | None:
    """Open the spool file `path`; return None if it has an owner or does not exist.

    Raises `SpoolCorruptError` after setting a damaged file aside, and the errors of `Spool`.
    """
    with translated_errors(path):
        lock = _lock(path.with_suffix(".lock"), fcntl.LOCK_EX)
        if lock is None:
            return None
        spool = None
        try:
            # It may have been set aside before the lock was released.
            if path.exists():
                spool = Spool(path, max_bytes, lambda: _unlock(lock))
        except SpoolCorruptError as error:
            _set_aside(path, str(error))
            raise
        finally:
            if spool is None:
                _unlock(lock)
        return spool


def spools(directory: Path) -> list[Path]:
    """Return the spool files of `directory`, ordered by name."""
    return _files(directory, _SPOOLS)


def list_spools(directory: Path) -> list[SpoolInfo]:
    """Return the current state of all spools of `directory`, including those set aside.

    Does not delay owners. Raises `RetryableError` when the directory cannot be read.
    """
    with translated_errors(directory):
        listed = [_info(path) for path in spools(directory)]
        for path in _files(directory, _CORRUPT):
            if not path.name.endswith(_SUFFIXES):
                listed.append(SpoolInfo(path, False, True, None, "damaged, set aside"))
        return listed


def _files(directory: Path, pattern: str) -> list[Path]:
    # Not by glob, which returns nothing for a directory without read permission.
    return sorted(path for path in directory.iterdir() if path.match(pattern))


def _info(path: Path) -> SpoolInfo:
    # Shared and for a moment: at worst a process that starts just then skips this file.
    lock = _lock(path.with_suffix(".lock"), fcntl.LOCK_SH)
    if lock is not None:
        _unlock(lock)
    found, problem = None, None
    try:
        found = summary(path)
    except ExecutionEventsError as error:
        problem = str(error).removeprefix(f"{path}: ")
    return SpoolInfo(path, lock is None, False, found, problem)


def _is_empty(path: Path) -> bool:
    try:
        return not has_pending(path)
    except ExecutionEventsError:
        return False


def _create_directory(directory: Path) -> None:
    directory = directory.absolute()
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        _sync(path.parent)


def _create(directory: Path, max_bytes: int) -> Spool:
    path = directory / f"spool-{secrets.token_hex(4)}.db"
    # The lock comes first, so that no other process adopts the file when it appears.
    lock = _lock(path.with_suffix(".lock"), fcntl.LOCK_EX)
    if lock is None:
        raise RetryableError(f"{path}: in use already")
    try:
        create(path)
        _sync(directory)
        return Spool(path, max_bytes, lambda: _unlock(lock))
    except BaseException:
        _unlock(lock)
        raise


def _set_aside(path: Path, error: str) -> Path:
    """Rename `path` and its WAL files; the caller holds the lock, so no other process uses them."""
    aside = path.with_name(f"{path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    for suffix in ("", *_SUFFIXES):
        try:
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
        except FileNotFoundError:
            continue
    _sync(path.parent)
    _log.error(
        "spool_set_aside",
        path=str(path),
        kept=str(aside),
        error=error,
        next_step="its events are not sent: try to recover them with `sqlite3 FILE .recover`",
    )
    return aside


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The lock is on a separate file: closing any descriptor of the database would release SQLite's own
# locks. The kernel releases a lock of flock with its last descriptor, however the process ends; a
# fork has copies of the descriptors, and must not keep the spool of a dead parent.
_locks: set[int] = set()


def _lock(path: Path, kind: int) -> int | None:
    with fork_lock:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
        _locks.add(descriptor)
        return descriptor


def _unlock(descriptor: int) -> None:
    with fork_lock:
        _locks.remove(descriptor)
        os.close(descriptor)


def _close_inherited_locks() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_close_inherited_locks)
