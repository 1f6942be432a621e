"""The spool files of one directory: who owns which, and what becomes of those that nobody owns.

`spool-<hex>.db` is a spool, with SQLite's `-wal` and `-shm` beside it. Its owner holds a lock on
`spool-<hex>.lock`, which is never removed. A damaged file is kept as
`spool-<hex>.db.corrupt-<time>`. The directory is on a local file system: SQLite's WAL needs it.
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
    between_forks,
    create,
    has_left,
    summary,
    translated,
)
from execution_events.publisher.spool.spool import Spool

_log = Logger(__name__)

_SPOOLS = "spool-*.db"
_CORRUPT = "spool-*.db.corrupt-*"
_COMPANIONS = ("-wal", "-shm")


class SpoolInfo(NamedTuple):
    """One file, as an operator sees it.

    `problem` says why it cannot be read: it is damaged, or of a newer version; `summary` is None
    then. `set_aside` is a file that was damaged and that nothing uses any more.
    """

    path: Path
    owned: bool
    set_aside: bool
    summary: Summary | None
    problem: str | None


def open_spool(directory: Path, max_bytes: int) -> Spool:
    """A spool of `directory` that is this process's alone.

    The first that nobody owns, such as one that a killed process has left, and of these rather one
    with records to send; else a new one. The directory is made for its owner alone where it is
    missing. A damaged file is set aside, and others that cannot be used are passed over; each is
    logged as an error.

    Raises `RetryableError` where the directory or its disk cannot be used.
    """
    with translated(directory):
        _make(directory)
        # What others do meanwhile changes which spool is chosen, and nothing else.
        for path in sorted(spools(directory), key=_is_empty):
            try:
                spool = adopt(path, max_bytes)
            except SpoolCorruptError:
                continue
            except ExecutionEventsError as error:
                _log.error("spool passed over", why=str(error))
                continue
            if spool is not None:
                return spool
        return _new(directory, max_bytes)


def replace(spool: Spool, max_bytes: int) -> Spool:
    """Set `spool`, which turned out to be damaged, aside, and open another of its directory."""
    set_aside(spool)
    return open_spool(spool.path.parent, max_bytes)


def set_aside(spool: Spool) -> Path:
    """Rename the file of `spool`, which turned out to be damaged, and close it; its new path."""
    with translated(spool.path):
        aside = _set_aside(spool.path, "damaged while it was used")
    spool.close()
    return aside


def adopt(path: Path, max_bytes: int) -> Spool | None:
    """Open the spool file `path`, None where another process, or this one, owns it or it is gone.

    Raises `SpoolCorruptError` after it has set a damaged file aside, and the errors of `Spool`.
    """
    with translated(path):
        lock = _lock(path.with_suffix(".lock"), fcntl.LOCK_EX)
        if lock is None:
            return None
        spool = None
        try:
            # It may have been set aside until the lock was free.
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
    """The spool files of `directory`, by name."""
    return _files(directory, _SPOOLS)


def list_spools(directory: Path) -> list[SpoolInfo]:
    """All spools of `directory` and all that were set aside, as they are now.

    An owner is not held up. Raises `RetryableError` where the directory cannot be read.
    """
    with translated(directory):
        listed = [_info(path) for path in spools(directory)]
        for path in _files(directory, _CORRUPT):
            if not path.name.endswith(_COMPANIONS):
                listed.append(SpoolInfo(path, False, True, None, "damaged, set aside"))
        return listed


def _files(directory: Path, pattern: str) -> list[Path]:
    # Not by glob, which takes a directory that may not be read for an empty one.
    return sorted(path for path in directory.iterdir() if path.match(pattern))


def _info(path: Path) -> SpoolInfo:
    # Shared and for a moment: at worst a process that starts just then passes this file over.
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
        return not has_left(path)
    except ExecutionEventsError:
        return False


def _make(directory: Path) -> None:
    directory = directory.absolute()
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        _sync(path.parent)


def _new(directory: Path, max_bytes: int) -> Spool:
    path = directory / f"spool-{secrets.token_hex(4)}.db"
    # The lock comes first, so that nobody else owns the file when it appears.
    lock = _lock(path.with_suffix(".lock"), fcntl.LOCK_EX)
    if lock is None:
        raise RetryableError(f"{path}: is in use already")
    try:
        create(path)
        _sync(directory)
        return Spool(path, max_bytes, lambda: _unlock(lock))
    except BaseException:
        _unlock(lock)
        raise


def _set_aside(path: Path, why: str) -> Path:
    """Rename `path` and its companions; the caller holds the lock, so nobody else uses them."""
    aside = path.with_name(f"{path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    for companion in ("", *_COMPANIONS):
        try:
            Path(f"{path}{companion}").rename(f"{aside}{companion}")
        except FileNotFoundError:
            continue
    _sync(path.parent)
    _log.error(
        "damaged spool set aside",
        spool=str(path),
        kept=str(aside),
        why=why,
        next_step="its events are not sent: see what `sqlite3 FILE .recover` still reads of it",
    )
    return aside


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The lock is on a file of its own: SQLite's locks on the database go when any descriptor of it is
# closed in the process. It is flock's, which the kernel gives up with the last descriptor, however
# the process ends; a fork has a copy, and must not keep a dead parent's spool.
_locks: set[int] = set()


def _lock(path: Path, kind: int) -> int | None:
    with between_forks:
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
    with between_forks:
        _locks.remove(descriptor)
        os.close(descriptor)


def _forget_locks() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_forget_locks)
