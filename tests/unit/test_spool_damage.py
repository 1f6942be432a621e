"""A spool file after kills and damage."""

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from execution_events.errors import (
    SpoolCorruptError,
)
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.file import create, summary
from execution_events.publisher.spool.spool import Spool
from tests.support.spools import (
    MAX_BYTES,
    TRACEPARENT,
    number_of,
    put,
    take,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "spool-1.db"
    create(path)
    return path


# Kills.

_WRITER = """
import os, signal, sys
from pathlib import Path
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.spool import Spool

path, statement, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
spool = Spool(path, 2**26)
seen = 0

def trace(text):
    global seen
    hit = text.strip().startswith(statement)
    seen += hit
    if hit and seen == at:
        os.kill(os.getpid(), signal.SIGKILL)

if at:
    spool._file.connection.set_trace_callback(trace)
number = first = spool.last
done = []
while True:
    new = [PendingRecord(b"key-0", b"%d" % (number + n), None, 0) for n in range(1, 65)]
    fetched = spool.commit(new, done, limit=40, partition_of=lambda key: 0)
    number += 64
    done = [record.sequence for record in fetched]
    print(number, done[-1], flush=True)
"""


def run_writer(path: Path, statement: str = "", at: int = 0, lines: int = 0) -> tuple[int, int]:
    """Write until the writer kills itself before its `at`th `statement`, or after `lines` lines.

    Returns the last number reported as stored, and the last reported as fetched.
    """
    command = [sys.executable, "-c", _WRITER, str(path), statement, str(at)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        printed: list[str] = []
        for line in writer.stdout:
            printed.append(line)
            if len(printed) == lines:
                writer.kill()
        assert writer.wait() == -9
    stored, fetched = printed[-1].split() if printed else ("0", "0")
    return int(stored), int(fetched)


def assert_nothing_lost(path: Path, stored: int, fetched: int) -> int:
    """Check that unacknowledged records are there once, in order; return the last number."""
    with Spool(path, MAX_BYTES) as spool:
        found = [(r.sequence, number_of(r)) for r in take(spool, 1_000_000)]
    numbers = [number for _, number in found]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert [sequence for sequence, _ in found] == numbers
    # The interrupted commit may have been the one that deleted all fetched records.
    assert numbers[0] <= fetched + 1
    assert stored <= numbers[-1] <= stored + 64
    return numbers[-1]


@pytest.mark.parametrize("statement", ["BEGIN", "DELETE", "INSERT", "COMMIT"])
def test_a_kill_during_a_transaction_keeps_the_one_before(path: Path, statement: str) -> None:
    at = 3 * 40 + 1 if statement == "DELETE" else 5 * 64 if statement == "INSERT" else 5
    stored, fetched = run_writer(path, statement, at)
    assert stored == 4 * 64
    assert assert_nothing_lost(path, stored, fetched) == stored


def test_a_killed_process_loses_no_stored_record(path: Path) -> None:
    rng = random.Random(5)
    last = 0
    for _ in range(5):
        stored, fetched = run_writer(path, lines=rng.randrange(1, 60))
        assert stored > last
        last = assert_nothing_lost(path, stored, fetched)


# Damage.


def garbage_header(path: Path) -> None:
    overwrite(path, 0, b"\xa5" * 4096)


def garbage_pages(path: Path) -> None:
    overwrite(path, 45 * 4096, b"\xa5" * 4096 * 4)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def nothing(path: Path) -> None:
    os.truncate(path, 0)


def page_both_free_and_used(path: Path) -> None:
    # The header's field of the first free page; the next records would overwrite page 3.
    overwrite(path, 32, (3).to_bytes(4, "big"))


def another_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE record (sequence INTEGER)")
    connection.close()


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


DAMAGES = [
    *(garbage_header, garbage_pages, page_both_free_and_used),
    *(half, nothing, another_database),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_not_opened(path: Path, damage: Callable[[Path], None]) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, *range(200), size=1000)
        take(spool, 100)
        take(spool, 0, tuple(range(100)))
    damage(path)
    with pytest.raises(SpoolCorruptError, match=r"spool-1.db: damaged: "):
        Spool(path, MAX_BYTES)


def test_an_emptied_file_keeps_its_wal(path: Path) -> None:
    run_writer(path, lines=3)
    wal = Path(f"{path}-wal")
    content = wal.read_bytes()
    assert content
    os.truncate(path, 0)
    for open_it in (lambda path: Spool(path, MAX_BYTES), summary):
        with pytest.raises(SpoolCorruptError):
            open_it(path)
    assert wal.read_bytes() == content


def test_damage_in_use_is_detected(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, *range(5000), size=1000)
        spool._file.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = path.stat().st_size // 4096
        for page in range(10, pages):
            overwrite(path, page * 4096, b"\xa5" * 4096)
        with pytest.raises(SpoolCorruptError, match=r"spool-1.db: damaged: SQLITE_CORRUPT"):
            take(spool, 5000)


@pytest.mark.parametrize("content", [b"x" * 500, TRACEPARENT.encode()])
def test_bytes_changed_on_the_disk_are_not_sent(path: Path, content: bytes) -> None:
    with Spool(path, MAX_BYTES) as spool:
        new = PendingRecord(b"key", b"x" * 500, TRACEPARENT, 0)
        spool.commit([new], [], limit=0, partition_of=None)
    offset = path.read_bytes().index(content)
    overwrite(path, offset, b"\xff")
    with Spool(path, MAX_BYTES) as spool, pytest.raises(SpoolCorruptError):
        take(spool)
