"""One spool file: durability, order of fetches, limits."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from execution_events.clock import now_ms
from execution_events.errors import (
    HaltError,
    RetryableError,
    SpoolFullError,
)
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool import spool as module
from execution_events.publisher.spool.file import create, summary
from execution_events.publisher.spool.spool import Spool
from tests.support.spools import (
    HOLD_MS,
    MAX_BYTES,
    TRACEPARENT,
    age,
    assigned,
    number_of,
    partition_of,
    put,
    record,
    take,
    timeless,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "spool-1.db"
    create(path)
    return path


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    with Spool(path, MAX_BYTES) as opened:
        yield opened


# Storing and fetching.


def test_a_record_is_fetched_unchanged(spool: Spool) -> None:
    new = PendingRecord(b"\x00\xff", "价值".encode(), TRACEPARENT, 1_700_000_000_123)
    assert timeless(spool.commit([new], [], limit=1, partition_of=lambda _: 5)) == [
        assigned(new, 1, 5)
    ]


def test_a_record_is_fetched_unchanged_after_reopening(path: Path) -> None:
    new = PendingRecord(b"\x00\xff", "价值".encode(), TRACEPARENT, 1_700_000_000_123)
    with Spool(path, MAX_BYTES) as spool:
        assert spool.commit([new], [], limit=9, partition_of=None) == []
        source = spool.source
    with Spool(path, MAX_BYTES) as spool:
        assert timeless(spool.commit([], [], limit=9, partition_of=lambda _: 5)) == [
            assigned(new, 1, 5)
        ]
        assert spool.source == source


def test_every_file_has_its_own_source(tmp_path: Path) -> None:
    sources = set()
    for name in ("a.db", "b.db"):
        create(tmp_path / name)
        sources.add(summary(tmp_path / name).source)
    assert len(sources) == 2
    assert all(source.startswith("urn:uuid:") and len(source) == 45 for source in sources)


def test_new_records_are_fetched_after_older_ones(spool: Spool) -> None:
    put(spool, 1, 2, 3)
    new = [record(4), record(5)]
    first = spool.commit(new, [], limit=2, partition_of=partition_of)
    assert list(map(number_of, first)) == [1, 2]
    new = [record(6), record(7)]
    second = spool.commit(new, [], limit=4, partition_of=partition_of)
    assert list(map(number_of, second)) == [3, 4, 5, 6]
    assert list(map(number_of, take(spool))) == [7]
    assert take(spool) == []


def test_unacknowledged_records_are_fetched_again_with_their_partition(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2)
        spool.commit([record(3)], [], limit=3, partition_of=lambda _: 4)
        put(spool, 4)
        spool.commit([], [2], limit=0, partition_of=None)
    with Spool(path, MAX_BYTES) as spool:
        again = spool.commit([record(5)], [], limit=9, partition_of=lambda _: 6)
    assert [(r.sequence, r.partition) for r in again] == [(1, 4), (3, 4), (4, 6), (5, 6)]


def test_partitions_and_attempts_are_stored_before_records_are_returned(spool: Spool) -> None:
    put(spool, 1, 2, 3)
    spool.commit([record(4), record(5)], [], limit=4, partition_of=lambda _: 8)
    with sqlite3.connect(spool.path) as connection:
        stored = connection.execute("SELECT partition, attempted_at IS NULL FROM record").fetchall()
    connection.close()
    assert stored == [(8, 0)] * 4 + [(None, 1)]


def test_sequences_are_never_reused(path: Path) -> None:
    for expected in (1, 2, 3):
        with Spool(path, MAX_BYTES) as spool:
            assert spool.last == expected - 1
            [fetched] = spool.commit([record(0)], [], limit=1, partition_of=partition_of)
            assert fetched.sequence == expected
            spool.commit([], [fetched.sequence], limit=0, partition_of=None)
            assert spool.pending == 0


def test_an_acknowledgement_counts_once(spool: Spool) -> None:
    put(spool, 1, 2)
    take(spool, limit=1)
    before = spool.bytes
    # 2 has not been fetched, 3 does not exist.
    take(spool, 0, (1, 1, 2, 3))
    take(spool, 0, (1,))
    assert (spool.pending, spool.last) == (1, 2)
    assert spool.bytes == before // 2


def test_a_partitioner_that_fails_changes_nothing(spool: Spool) -> None:
    def fail(key: bytes) -> int:
        raise LookupError(key)

    put(spool, 1)
    for new in ([], [record(2)]):
        with pytest.raises(LookupError):
            spool.commit(new, [], limit=9, partition_of=fail)
    assert (spool.pending, spool.last, spool.fetched) == (1, 1, 0)
    assert list(map(number_of, take(spool))) == [1]


def test_a_failure_between_two_records_stores_neither(spool: Spool) -> None:
    unwritable = replace(record(2), traceparent="\ud800")
    with pytest.raises(UnicodeEncodeError):
        spool.commit([record(1), unwritable], [], limit=9, partition_of=partition_of)
    assert (spool.pending, spool.last, spool.fetched) == (0, 0, 0)
    put(spool, 3)
    assert [(r.sequence, number_of(r)) for r in take(spool)] == [(1, 3)]


def test_nothing_to_write_takes_no_transaction(spool: Spool) -> None:
    statements: list[str] = []
    spool._file.connection.set_trace_callback(statements.append)
    assert take(spool) == []
    assert statements == []
    put(spool, 1)
    assert (statements[0], statements[-1]) == ("BEGIN IMMEDIATE", "COMMIT")
    assert statements.count("COMMIT") == 1


def test_transactions_are_synced_to_the_disk(spool: Spool) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "fullfsync": 1, "checkpoint_fullfsync": 1}
    assert wanted == {
        pragma: spool._file.connection.execute(f"PRAGMA {pragma}").fetchone()[0]
        for pragma in wanted
    }


def test_a_file_is_readable_by_its_owner_alone(spool: Spool) -> None:
    put(spool, 1)
    for suffix in ("", "-wal", "-shm"):
        assert Path(f"{spool.path}{suffix}").stat().st_mode & 0o077 == 0


# Held and refused.


def test_a_record_attempted_long_ago_is_held(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2)
        take(spool, limit=1)
    age(path, HOLD_MS)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.pending, spool.held) == (1, 1)
        assert list(map(number_of, take(spool))) == [2]
        assert spool.fetched == spool.last == 2


def test_a_record_attempted_recently_is_fetched(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1)
        take(spool)
    age(path, HOLD_MS - 60_000)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.pending, spool.held) == (1, 0)
        assert len(take(spool)) == 1


def test_the_first_attempt_counts_and_not_the_last(path: Path) -> None:
    """Consumers may have forgotten a record that was sent long ago and again today."""
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1)
        take(spool)
    age(path, HOLD_MS - 60_000)
    with Spool(path, MAX_BYTES) as spool:
        take(spool)
    age(path, 60_000)
    with Spool(path, MAX_BYTES) as spool:
        assert spool.held == 1


def test_a_record_never_attempted_is_never_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1)
    now = now_ms()
    monkeypatch.setattr(module, "now_ms", lambda: now + 100 * HOLD_MS)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.pending, spool.held) == (1, 0)


def test_a_refused_record_is_kept_and_not_fetched_again(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2)
        take(spool)
        spool.refuse(1, "too large")
        spool.refuse(1, "too large")
        spool.refuse(7, "too large")
        assert (spool.pending, spool.refused) == (1, 1)
        take(spool, 0, (1,))
        assert (spool.pending, spool.refused) == (1, 1)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.pending, spool.refused) == (1, 1)
        assert list(map(number_of, take(spool))) == [2]


def test_accepted_duplicates_come_last_like_new_records(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RENEWAL_LIMIT", 2)
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2, 3, 4, 5, 6, 7)
        take(spool, limit=6)
        spool.refuse(5, "too large")
    age(path, HOLD_MS)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.pending, spool.held, spool.refused) == (1, 5, 1)
        before = spool.bytes
        assert spool.accept_duplicates() == 6
        assert (spool.pending, spool.held, spool.refused, spool.last) == (7, 0, 0, 13)
        assert spool.bytes == before
        assert spool.accept_duplicates() == 0
        fetched = spool.commit([], [], limit=99, partition_of=lambda _: 9)
    assert [(r.sequence, number_of(r)) for r in fetched] == list(
        zip(range(7, 14), (7, 1, 2, 3, 4, 5, 6), strict=True)
    )
    assert {r.partition for r in fetched} == {9}
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.pending, spool.held, spool.last) == (7, 0, 13)


def test_a_record_is_held_once_its_attempt_is_long_ago(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2, 3, 4)
        take(spool, limit=3)
        spool.commit([], [1], limit=0, partition_of=None)
    with Spool(path, MAX_BYTES) as spool:
        # This one is in flight, and the sender's task; the other is in the file.
        [second] = take(spool, limit=1)
        now = now_ms()
        monkeypatch.setattr(module, "now_ms", lambda: now + HOLD_MS + 1)
        put(spool, 5)
        assert (spool.pending, spool.held) == (3, 1)
        assert list(map(number_of, take(spool))) == [4, 5]
        spool.hold([second.sequence])
        spool.hold([second.sequence])
        assert (spool.pending, spool.held) == (2, 2)
        assert summary(path).held == 2
        assert spool.accept_duplicates() == 2


def test_held_records_stay_held_when_the_clock_is_set_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later records of the partition have been sent, so it would be taken for a duplicate."""
    now = now_ms()
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2)
        take(spool, limit=1)
    with Spool(path, MAX_BYTES) as spool:
        with monkeypatch.context() as patch:
            patch.setattr(module, "now_ms", lambda: now + 365 * 24 * 3600 * 1000)
            assert list(map(number_of, take(spool))) == [2]
        assert take(spool) == []
        assert (spool.pending, spool.held) == (1, 1)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.pending, spool.held) == (1, 1)
        assert list(map(number_of, take(spool))) == [2]


# Blocked partitions.


def test_records_of_blocked_partitions_are_skipped_until_unblocked(spool: Spool) -> None:
    put(spool, *range(7, 21))
    first = spool.commit([], [], limit=3, partition_of=partition_of, blocked={0, 1})
    assert list(map(number_of, first)) == [9, 10, 11]
    new = [record(21), record(23)]
    second = spool.commit(new, [], limit=99, partition_of=partition_of, blocked={0, 1})
    assert list(map(number_of, second)) == [12, 13, 16, 17, 18, 19, 20, 23]
    assert spool.fetched == spool.last
    third = spool.commit([record(24)], [], limit=99, partition_of=partition_of, blocked={1})
    assert list(map(number_of, third)) == [7, 14, 21, 24]
    assert list(map(number_of, take(spool))) == [8, 15]
    assert take(spool) == []


def test_requeued_records_are_fetched_again_before_later_ones(spool: Spool) -> None:
    put(spool, 1, 2, 3, 4)
    fetched = take(spool)
    spool.requeue([fetched[1].sequence, fetched[2].sequence])
    spool.commit([], [fetched[2].sequence], limit=0, partition_of=None)
    assert spool.pending == 4
    again = spool.commit([record(5)], [], limit=9, partition_of=lambda _: 99)
    assert again[:2] == fetched[1:3]
    assert list(map(number_of, again)) == [2, 3, 5]


def test_errors_of_blocked_partitions_are_readable_in_use_and_afterwards(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        spool.store_errors({3: "no leader", -1: "Kafka is unavailable"})
        assert summary(path).errors == {-1: "Kafka is unavailable", 3: "no leader"}
        spool.store_errors({4: "no leader"})
    assert summary(path).errors == {4: "no leader"}
    with Spool(path, MAX_BYTES) as spool:
        assert spool.errors == {4: "no leader"}
        spool.store_errors({})
    assert summary(path).errors == {}


def test_a_file_without_the_table_of_errors_is_read_and_used(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1)
        spool._file.connection.execute("DROP TABLE blocked_partition")
    assert (summary(path).pending, summary(path).errors) == (1, {})
    with Spool(path, MAX_BYTES) as spool:
        spool.store_errors({0: "no leader"})
        assert summary(path).errors == {0: "no leader"}


def test_records_of_missing_partitions_are_reassigned(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RENEWAL_LIMIT", 2)
    with Spool(path, MAX_BYTES) as spool:
        put(spool, *range(1, 8))
        take(spool, limit=6)
    with Spool(path, MAX_BYTES) as spool:
        assert spool.reassign_partitions(3) == 4
        assert spool.reassign_partitions(3) == 0
        assert (spool.pending, spool.last) == (7, 11)
        fetched = spool.commit([], [], limit=99, partition_of=lambda _: 2)
    assert [(r.sequence, number_of(r), r.partition) for r in fetched] == [
        *((1, 1, 1), (2, 2, 2), (7, 7, 2)),
        *((8, 3, 2), (9, 4, 2), (10, 5, 2), (11, 6, 2)),
    ]


# Limits and failures.


def test_a_full_spool_stores_nothing_of_a_commit_and_stays_usable(path: Path) -> None:
    with Spool(path, 1000) as spool:
        put(spool, 1, size=400)
        take(spool)
        with pytest.raises(SpoolFullError, match=r"spool-1.db: full"):
            put(spool, 2, 3, size=400)
        assert (spool.pending, spool.last) == (1, 1)
        put(spool, 2, size=400)
        # Records acknowledged by the same commit are deleted even if it fails.
        with pytest.raises(SpoolFullError):
            spool.commit([record(3, 400), record(4, 400)], [1], limit=9, partition_of=partition_of)
        assert (spool.pending, summary(path).pending) == (1, 1)
        fetched = spool.commit([record(3, 400)], [], limit=9, partition_of=partition_of)
        assert list(map(number_of, fetched)) == [2, 3]
    with Spool(path, 1000) as spool, pytest.raises(SpoolFullError):
        put(spool, 4, size=400)


def test_a_disk_that_is_nearly_full_keeps_a_reserve_for_sending(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(spool, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_RESERVE", 2**60)
        with pytest.raises(SpoolFullError, match="the disk is nearly full"):
            put(spool, 3)
        assert len(take(spool)) == 2
        take(spool, 0, (1,))
    assert summary(spool.path).pending == 1
    put(spool, 3)
    assert spool.pending == 2


def test_a_full_disk_stores_nothing_of_a_commit_and_stays_usable(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, *range(1, 51), size=500)
        take(spool, limit=50)
        pages = spool._file.connection.execute("PRAGMA page_count").fetchone()[0]
        spool._file.connection.execute(f"PRAGMA max_page_count = {pages}")
        before = (spool.pending, spool.last, spool.bytes, spool.fetched)
        with pytest.raises(SpoolFullError, match="the disk is full") as failure:
            put(spool, *range(51, 101), size=500)
        assert isinstance(failure.value.__cause__, sqlite3.OperationalError)
        assert (spool.pending, spool.last, spool.bytes, spool.fetched) == before
        # Records acknowledged by a failed commit are deleted by the next one.
        with pytest.raises(SpoolFullError):
            spool.commit(
                [record(n, 5000) for n in range(51, 101)],
                list(range(1, 41)),
                limit=0,
                partition_of=None,
            )
        assert spool.pending == 10
        fetched = spool.commit([record(51)], [], limit=9, partition_of=partition_of)
        assert [(r.sequence, number_of(r)) for r in fetched] == [(51, 51)]
    with Spool(path, MAX_BYTES) as spool:
        assert spool.pending == 11


_LIMITED = """
import resource, sys
from pathlib import Path
from execution_events.errors import RetryableError, SpoolFullError
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.spool import Spool

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

spool = Spool(Path(sys.argv[1]), 2**26)
new = [PendingRecord(b"key", b"x" * 1000, None, 0) for _ in range(64)]
spool.commit(new, [], limit=0, partition_of=None)
limit(100_000)
for _ in range(3):
    try:
        spool.commit(new, [], limit=0, partition_of=None)
    except SpoolFullError:
        sys.exit("full")
    except RetryableError as error:
        print(error)
limit(resource.RLIM_INFINITY)
fetched = spool.commit(new, [], limit=1000, partition_of=lambda key: 0)
print([spool.pending, len(fetched), fetched[-1].sequence])
"""


def test_a_failed_write_is_retryable_and_leaves_the_spool_usable(path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    *errors, last = ended.stdout.splitlines()
    assert errors
    assert {error.partition(": ")[0] for error in errors} == {str(path)}
    assert all("SQLITE_IOERR" in error for error in errors)
    stored = (4 - len(errors) + 1) * 64
    assert last == str([stored, stored, stored])


def test_the_error_for_a_missing_file_names_it(tmp_path: Path) -> None:
    for open_it in (lambda path: Spool(path, MAX_BYTES), summary):
        with pytest.raises(RetryableError, match=r"absent.db: cannot be used: SQLITE_CANTOPEN"):
            open_it(tmp_path / "absent.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_newer_version_is_refused_and_unchanged(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    content = path.read_bytes()
    for open_it in (lambda path: Spool(path, MAX_BYTES), summary):
        with pytest.raises(
            HaltError, match=r"spool-1.db: written by a newer version, with schema 2"
        ):
            open_it(path)
    assert path.read_bytes() == content


def test_closing_twice_releases_the_lock_once(path: Path) -> None:
    released: list[int] = []
    spool = Spool(path, MAX_BYTES, lambda: released.append(1))
    spool.close()
    spool.close()
    assert released == [1]
