"""The spools of a directory: one owner each, adoption, and damage."""

import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from execution_events.errors import MisconfiguredError, RetryableError, SpoolCorruptError
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool import directory as spool_directory
from execution_events.publisher.spool.directory import (
    adopt,
    list_spools,
    open_spool,
    replace,
    set_aside,
    spools,
)
from execution_events.publisher.spool.spool import Spool

MAX_BYTES = 64 * 1024 * 1024


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spool"


def put(spool: Spool, *values: bytes) -> None:
    new = [PendingRecord(b"key", value, None, 1_700_000_000_000) for value in values]
    spool.commit(new, [], limit=0, partition_of=None)


def values(spool: Spool) -> list[bytes]:
    return [r.value for r in spool.commit([], [], limit=1000, partition_of=lambda _: 0)]


def left_behind(directory: Path, *values: bytes) -> Path:
    """A spool without an owner, always in a new file."""
    with ExitStack() as others:
        known = set(spools(directory)) if directory.exists() else set()
        while (spool := others.enter_context(open_spool(directory, MAX_BYTES))).path in known:
            pass
        put(spool, *values)
        return spool.path


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xa5" * 4096)


# A process with a spool: prints its path, then stores each line and prints the number pending.
_OWNER = """
import sys
from pathlib import Path
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.directory import open_spool
sys.stdin.readline()
spool = open_spool(Path(sys.argv[1]), 2**26)
print(spool.path, flush=True)
for line in sys.stdin:
    new = [PendingRecord(b"key", line.strip().encode(), None, 0)]
    spool.commit(new, [], limit=0, partition_of=None)
    print(spool.pending, flush=True)
"""


class Process:
    """A Python program driven line by line through its pipes; killed at the end."""

    def __init__(self, program: str, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()

    def write(self, line: str = "") -> None:
        assert self._process.stdin
        print(line, file=self._process.stdin, flush=True)

    def read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the process has ended"
        return line.rstrip("\n")

    def request(self, line: str = "") -> str:
        self.write(line)
        return self.read()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def owner(directory: Path) -> Iterator[Process]:
    with Process(_OWNER, directory) as process:
        yield process


# Creation and adoption.


def test_the_directory_and_its_files_are_readable_by_their_owner_alone(directory: Path) -> None:
    with open_spool(directory, MAX_BYTES) as spool:
        assert spool.path.parent == directory
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_mode_of_an_existing_directory_is_unchanged(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    open_spool(tmp_path, MAX_BYTES).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_new_directories_and_files_survive_a_power_failure(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, bool]] = []
    sync = spool_directory._sync

    def note(path: Path) -> None:
        synced.append((path, bool(spools(directory))))
        sync(path)

    monkeypatch.setattr(spool_directory, "_sync", note)
    open_spool(directory, MAX_BYTES).close()
    assert set(synced) == {
        (directory.parent.parent, False),
        (directory.parent, False),
        (directory, True),
    }


def test_a_closed_spool_is_reused(directory: Path) -> None:
    with open_spool(directory, MAX_BYTES) as spool:
        put(spool, b"1")
        first = spool.path, spool.source
    with open_spool(directory, MAX_BYTES) as spool:
        assert (spool.path, spool.source) == first
        assert values(spool) == [b"1"]


def test_a_spool_has_one_owner(directory: Path, owner: Process) -> None:
    theirs = Path(owner.request())
    with open_spool(directory, MAX_BYTES) as ours, open_spool(directory, MAX_BYTES) as another:
        assert len({theirs, ours.path, another.path}) == 3
        for path in (theirs, ours.path, another.path):
            assert adopt(path, MAX_BYTES) is None


def test_the_spool_of_a_killed_process_is_adopted(directory: Path, owner: Process) -> None:
    theirs = Path(owner.request())
    assert owner.request("first") == "1"
    assert owner.request("second") == "2"
    owner.kill()
    with open_spool(directory, MAX_BYTES) as spool:
        assert spool.path == theirs
        assert values(spool) == [b"first", b"second"]


def test_a_spool_with_records_is_adopted_before_an_empty_one(directory: Path) -> None:
    with ExitStack() as all_at_once:
        made = [all_at_once.enter_context(open_spool(directory, MAX_BYTES)) for _ in range(4)]
        last = max(made, key=lambda spool: spool.path)
        put(last, b"1")
    with open_spool(directory, MAX_BYTES) as spool:
        assert spool.path == last.path


def test_processes_that_open_concurrently_get_different_spools(directory: Path) -> None:
    for _ in range(3):
        with ExitStack() as all_at_once:
            processes = [all_at_once.enter_context(Process(_OWNER, directory)) for _ in range(6)]
            for process in processes:
                process.write()
            owned = [process.read() for process in processes]
            assert len(set(owned)) == 6
            for process in processes:
                process.request("record")
    infos = list_spools(directory)
    assert len(infos) <= 18
    assert sum(info.summary.pending for info in infos if info.summary) == 18
    assert [info for info in infos if info.owned or info.problem] == []


def test_listing_disturbs_no_owner(directory: Path) -> None:
    with ExitStack() as all_at_once:
        processes = [all_at_once.enter_context(Process(_OWNER, directory)) for _ in range(4)]
        owned = {process.request() for process in processes}
        for number in range(1, 51):
            for process in processes:
                process.write("record")
            infos = list_spools(directory)
            assert {process.read() for process in processes} == {str(number)}
            assert {str(info.path) for info in infos} == owned
            assert {info.owned for info in infos} == {True}
            assert [info.problem for info in infos if info.problem] == []
            assert all(
                info.summary.pending in (number - 1, number) for info in infos if info.summary
            )


# Forks.

_FORKING = """
import os, sys
from pathlib import Path
from execution_events.publisher.spool.directory import list_spools, open_spool
sys.stdin.readline()
spool = open_spool(Path(sys.argv[1]), 2**26)
if os.fork():
    sys.stdin.read()
for call in (
    lambda: spool.commit([], [], limit=0, partition_of=None),
    lambda: spool.refuse(1, ""),
    lambda: spool.accept_duplicates(),
):
    try:
        call()
    except RuntimeError as error:
        print(str(os.getppid()) in str(error), flush=True)
own = open_spool(Path(sys.argv[1]), 2**26)
spool.close()
print([info.owned for info in list_spools(Path(sys.argv[1]))], flush=True)
print(spool.path, os.getpid(), flush=True)
own.close()
sys.stdin.read()
"""


def test_a_fork_neither_uses_nor_keeps_the_spool_of_its_parent(directory: Path) -> None:
    with Process(_FORKING, directory) as parent:
        assert [parent.request(), parent.read(), parent.read()] == ["True"] * 3
        # The fork has its own spool, and did not release that of its parent.
        assert parent.read() == "[True, True]"
        path, child = parent.read().split()
        assert adopt(Path(path), MAX_BYTES) is None
        parent.kill()
        os.kill(int(child), 0)
        adopted = adopt(Path(path), MAX_BYTES)
        assert adopted is not None
        adopted.close()


_FORKING_AT_WORK = """
import os, sys, threading
from pathlib import Path
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.directory import open_spool
sys.stdin.readline()
spool = open_spool(Path(sys.argv[1]), 2**26)
new = [PendingRecord(b"key", b"x" * 1000, None, 0) for _ in range(64)]
stop = threading.Event()
open_transactions = []

def work():
    while not stop.is_set():
        spool.commit(new, [], limit=0, partition_of=None)

worker = threading.Thread(target=work)
worker.start()
for _ in range(100):
    child = os.fork()
    if not child:
        os._exit(spool._file.connection.in_transaction)
    open_transactions.append(os.waitpid(child, 0)[1])
stop.set()
worker.join()
print(sum(open_transactions), spool.pending > 64, flush=True)
"""


def test_a_fork_has_no_open_transaction(directory: Path) -> None:
    with Process(_FORKING_AT_WORK, directory) as process:
        assert process.request() == "0 True"


# Damage.


def test_a_damaged_spool_is_set_aside_and_another_is_used(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = left_behind(directory, b"secret")
    damage(path)
    content = path.read_bytes()
    with open_spool(directory, MAX_BYTES) as spool:
        assert spool.path != path
        assert values(spool) == []
    [aside] = directory.glob(f"{path.name}.corrupt-*")
    assert aside.read_bytes() == content
    assert not path.exists()
    [entry] = caplog.records
    assert (entry.levelno, entry.__dict__["event"]) == (logging.ERROR, "spool_set_aside")
    fields = entry.__dict__["fields"]
    assert (fields["path"], fields["kept"]) == (str(path), str(aside))
    assert "recover" in fields["next_step"]
    assert "secret" not in str(fields)


def test_a_damaged_spool_keeps_its_wal(directory: Path, owner: Process) -> None:
    path = Path(owner.request())
    owner.request("record")
    owner.kill()
    wal = Path(f"{path}-wal").read_bytes()
    assert wal
    os.truncate(path, 0)
    with pytest.raises(SpoolCorruptError):
        adopt(path, MAX_BYTES)
    [aside] = directory.glob(f"{path.name}.corrupt-*-wal")
    assert aside.read_bytes() == wal
    assert aside.with_name(aside.name.removesuffix("-wal")).exists()
    assert not path.exists()


def test_a_spool_damaged_in_use_is_replaced(directory: Path) -> None:
    spool = open_spool(directory, MAX_BYTES)
    put(spool, b"1")
    other = replace(spool, MAX_BYTES)
    assert other.path != spool.path
    put(other, b"2")
    assert values(other) == [b"2"]
    with pytest.raises(sqlite3.ProgrammingError):
        values(spool)
    # Its records are kept, and can be read with its WAL.
    [aside] = [info.path for info in list_spools(directory) if info.set_aside]
    with sqlite3.connect(aside) as connection:
        assert connection.execute("SELECT value FROM record").fetchall() == [(b"1",)]
    connection.close()
    other.close()


def test_a_spool_stays_locked_while_it_is_set_aside(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(directory, MAX_BYTES)
    sync, seen = spool_directory._sync, []

    def note(path: Path) -> None:
        seen.append(spool_directory._lock(spool.path.with_suffix(".lock"), 2))
        sync(path)

    monkeypatch.setattr(spool_directory, "_sync", note)
    set_aside(spool)
    assert seen == [None]
    assert adopt(spool.path, MAX_BYTES) is None


def test_a_spool_of_a_newer_version_is_skipped(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = left_behind(directory, b"1")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with open_spool(directory, MAX_BYTES) as spool:
        assert spool.path != path
    [entry] = caplog.records
    assert (entry.levelno, entry.__dict__["event"]) == (logging.ERROR, "spool_skipped")
    assert "newer version" in entry.__dict__["fields"]["error"]
    # It stays unlocked for a process of that version.
    lock = spool_directory._lock(path.with_suffix(".lock"), 2)
    assert lock is not None
    spool_directory._unlock(lock)
    [info] = [info for info in list_spools(directory) if info.path == path]
    assert not info.owned
    assert info.summary is None
    assert (info.problem or "").startswith("written by a newer version")


def test_the_error_for_an_unusable_directory_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RetryableError, match="file"):
        open_spool(tmp_path / "file" / "spool", MAX_BYTES)
    with pytest.raises(RetryableError, match="absent: No such file"):
        list_spools(tmp_path / "absent")


# Listing.


def test_a_list_has_the_summary_of_each_spool(directory: Path, owner: Process) -> None:
    behind = left_behind(directory, b"12345")
    set_aside_too = left_behind(directory)
    damage(set_aside_too)
    with pytest.raises(SpoolCorruptError):
        adopt(set_aside_too, MAX_BYTES)
    with open_spool(directory, MAX_BYTES) as ours:
        assert ours.path == behind
        values(ours)
        ours.refuse(1, "too large")
        theirs = Path(owner.request())
        owner.request("record")
        damaged = left_behind(directory)
        damage(damaged)
        infos = {info.path: info for info in list_spools(directory)}
        mine = infos[behind]
        assert (mine.owned, mine.set_aside, mine.problem) == (True, False, None)
        assert mine.summary == (ours.source, 0, 0, 1, 3 + 5 + 32, 1_700_000_000_000, {})
        assert infos[theirs].owned
        assert (infos[damaged].owned, infos[damaged].summary) == (False, None)
        assert (infos[damaged].problem or "").startswith("damaged: ")
        [aside] = [info for info in infos.values() if info.set_aside]
        assert aside.path.name.startswith(f"{set_aside_too.name}.corrupt-")
        assert len(infos) == 4
    owner.kill()
    owned = {info.path: info.owned for info in list_spools(directory)}
    assert not any(owned.values())
    # Listing does not change the spool of a dead process.
    [info] = [info for info in list_spools(directory) if info.path == theirs]
    assert info.summary is not None
    assert info.summary.pending == 1
    adopted = adopt(theirs, MAX_BYTES)
    assert adopted is not None
    assert values(adopted) == [b"record"]
    adopted.close()


def test_a_directory_that_cannot_be_written_is_named_with_the_setting() -> None:
    """A worker ends at once: no further attempt mends it."""
    with pytest.raises(MisconfiguredError) as refused:
        open_spool(Path("/dev/null/spool"), MAX_BYTES)
    assert str(refused.value) == (
        "/dev/null/spool: Not a directory: set EXECUTION_EVENTS_SPOOL_DIR to a directory on a"
        " local disk that this user may write to"
    )
