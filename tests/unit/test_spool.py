"""One spool file: what is durable, in which order it is given, its bounds, and damage."""

import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from execution_events.errors import (
    HaltError,
    RetryableError,
    SpoolCorruptError,
    SpoolFullError,
)
from execution_events.publisher.record import NewRecord
from execution_events.publisher.spool import spool as module
from execution_events.publisher.spool.file import create, summary
from execution_events.publisher.spool.spool import Spool, SpooledRecord

MAX_BYTES = 64 * 1024 * 1024
HOLD_MS = 30 * 24 * 60 * 60 * 1000
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def record(number: int, size: int = 0) -> NewRecord:
    """A record that can be told from all others, with `size` bytes more."""
    return NewRecord(b"key-%d" % (number % 7), b"%d " % number + b"x" * size, None, number)


def attempted(sequence: int, partition: int, new: NewRecord) -> SpooledRecord:
    """What is given of `new`, but for the time of its first attempt."""
    return SpooledRecord(sequence, partition, new.key, new.value, new.traceparent, 0)


def timeless(given: list[SpooledRecord]) -> list[SpooledRecord]:
    """What is given, after a check that all was attempted a moment ago."""
    assert all(0 <= module._now() - record.attempted_at < 60_000 for record in given)
    return [record._replace(attempted_at=0) for record in given]


def number_of(given: SpooledRecord) -> int:
    return int(given.value.split()[0])


def partition_of(key: bytes) -> int:
    return int(key.removeprefix(b"key-"))


def put(spool: Spool, *numbers: int, size: int = 0) -> None:
    spool.exchange([record(n, size) for n in numbers], [], room=0, partition_of=None)


def take(spool: Spool, room: int = 1000, acknowledged: tuple[int, ...] = ()) -> list[SpooledRecord]:
    return spool.exchange([], acknowledged, room=room, partition_of=partition_of)


def age(path: Path, milliseconds: int) -> None:
    """Move all attempts into the past; the file is closed."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE record SET attempted_at = attempted_at - ?", [milliseconds])
    connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "spool-1.db"
    create(path)
    return path


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    with Spool(path, MAX_BYTES) as opened:
        yield opened


# What is kept and given.


def test_a_record_is_given_as_it_was_kept(spool: Spool) -> None:
    new = NewRecord(b"\x00\xff", "价值".encode(), TRACEPARENT, 1_700_000_000_123)
    assert timeless(spool.exchange([new], [], room=1, partition_of=lambda _: 5)) == [
        attempted(1, 5, new)
    ]


def test_a_record_is_given_as_it_was_kept_by_another_opening(path: Path) -> None:
    new = NewRecord(b"\x00\xff", "价值".encode(), TRACEPARENT, 1_700_000_000_123)
    with Spool(path, MAX_BYTES) as spool:
        assert spool.exchange([new], [], room=9, partition_of=None) == []
        source = spool.source
    with Spool(path, MAX_BYTES) as spool:
        assert timeless(spool.exchange([], [], room=9, partition_of=lambda _: 5)) == [
            attempted(1, 5, new)
        ]
        assert spool.source == source


def test_every_file_has_a_source_of_its_own(tmp_path: Path) -> None:
    sources = set()
    for name in ("a.db", "b.db"):
        create(tmp_path / name)
        sources.add(summary(tmp_path / name).source)
    assert len(sources) == 2
    assert all(source.startswith("urn:uuid:") and len(source) == 45 for source in sources)


def test_new_records_come_after_those_that_wait(spool: Spool) -> None:
    put(spool, 1, 2, 3)
    new = [record(4), record(5)]
    first = spool.exchange(new, [], room=2, partition_of=partition_of)
    assert list(map(number_of, first)) == [1, 2]
    new = [record(6), record(7)]
    second = spool.exchange(new, [], room=4, partition_of=partition_of)
    assert list(map(number_of, second)) == [3, 4, 5, 6]
    assert list(map(number_of, take(spool))) == [7]
    assert take(spool) == []


def test_what_was_not_acknowledged_is_given_again_with_its_partition(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2)
        spool.exchange([record(3)], [], room=3, partition_of=lambda _: 4)
        put(spool, 4)
        spool.exchange([], [2], room=0, partition_of=None)
    with Spool(path, MAX_BYTES) as spool:
        again = spool.exchange([record(5)], [], room=9, partition_of=lambda _: 6)
    assert [(r.sequence, r.partition) for r in again] == [(1, 4), (3, 4), (4, 6), (5, 6)]


def test_partitions_and_attempts_are_on_the_disk_when_records_are_given(spool: Spool) -> None:
    put(spool, 1, 2, 3)
    spool.exchange([record(4), record(5)], [], room=4, partition_of=lambda _: 8)
    with sqlite3.connect(spool.path) as connection:
        stored = connection.execute("SELECT partition, attempted_at IS NULL FROM record").fetchall()
    connection.close()
    assert stored == [(8, 0)] * 4 + [(None, 1)]


def test_sequences_are_never_used_again(path: Path) -> None:
    for expected in (1, 2, 3):
        with Spool(path, MAX_BYTES) as spool:
            assert spool.last == expected - 1
            [given] = spool.exchange([record(0)], [], room=1, partition_of=partition_of)
            assert given.sequence == expected
            spool.exchange([], [given.sequence], room=0, partition_of=None)
            assert spool.left == 0


def test_an_acknowledgement_counts_once(spool: Spool) -> None:
    put(spool, 1, 2)
    take(spool, room=1)
    before = spool.bytes
    # 2 has not been given, 3 is not there.
    take(spool, 0, (1, 1, 2, 3))
    take(spool, 0, (1,))
    assert (spool.left, spool.last) == (1, 2)
    assert spool.bytes == before // 2


def test_a_partitioner_that_fails_changes_nothing(spool: Spool) -> None:
    def fail(key: bytes) -> int:
        raise LookupError(key)

    put(spool, 1)
    for new in ([], [record(2)]):
        with pytest.raises(LookupError):
            spool.exchange(new, [], room=9, partition_of=fail)
    assert (spool.left, spool.last, spool.given) == (1, 1, 0)
    assert list(map(number_of, take(spool))) == [1]


def test_a_failure_between_two_records_keeps_neither(spool: Spool) -> None:
    unwritable = replace(record(2), traceparent="\ud800")
    with pytest.raises(UnicodeEncodeError):
        spool.exchange([record(1), unwritable], [], room=9, partition_of=partition_of)
    assert (spool.left, spool.last, spool.given) == (0, 0, 0)
    put(spool, 3)
    assert [(r.sequence, number_of(r)) for r in take(spool)] == [(1, 3)]


def test_nothing_to_write_is_no_transaction(spool: Spool) -> None:
    statements: list[str] = []
    spool._connection.set_trace_callback(statements.append)
    assert take(spool) == []
    assert statements == []
    put(spool, 1)
    assert (statements[0], statements[-1]) == ("BEGIN IMMEDIATE", "COMMIT")
    assert statements.count("COMMIT") == 1


def test_the_disk_is_told_to_keep_it(spool: Spool) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "fullfsync": 1, "checkpoint_fullfsync": 1}
    assert wanted == {
        pragma: spool._connection.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in wanted
    }


def test_a_file_is_its_owners_alone(spool: Spool) -> None:
    put(spool, 1)
    for suffix in ("", "-wal", "-shm"):
        assert Path(f"{spool.path}{suffix}").stat().st_mode & 0o077 == 0


# Kills.

_WRITER = """
import os, signal, sys
from pathlib import Path
from execution_events.publisher.record import NewRecord
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
    spool._connection.set_trace_callback(trace)
number = first = spool.last
done = []
while True:
    new = [NewRecord(b"key-0", b"%d" % (number + n), None, 0) for n in range(1, 65)]
    given = spool.exchange(new, done, room=40, partition_of=lambda key: 0)
    number += 64
    done = [record.sequence for record in given]
    print(number, done[-1], flush=True)
"""


def run_writer(path: Path, statement: str = "", at: int = 0, lines: int = 0) -> tuple[int, int]:
    """Write until the writer kills itself before its `at`th `statement`, or after `lines` lines.

    Gives the last number that was kept for sure, and the last that was given for sure.
    """
    command = [sys.executable, "-c", _WRITER, str(path), statement, str(at)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said: list[str] = []
        for line in writer.stdout:
            said.append(line)
            if len(said) == lines:
                writer.kill()
        assert writer.wait() == -9
    kept, given = said[-1].split() if said else ("0", "0")
    return int(kept), int(given)


def assert_nothing_lost(path: Path, kept: int, given: int) -> int:
    """All that was kept and not acknowledged is there once, in order; the last of it."""
    with Spool(path, MAX_BYTES) as spool:
        there = [(r.sequence, number_of(r)) for r in take(spool, 1_000_000)]
    numbers = [number for _, number in there]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert [sequence for sequence, _ in there] == numbers
    # The exchange under way may have been the one that forgot all that were given.
    assert numbers[0] <= given + 1
    assert kept <= numbers[-1] <= kept + 64
    return numbers[-1]


@pytest.mark.parametrize("statement", ["BEGIN", "DELETE", "INSERT", "COMMIT"])
def test_a_kill_within_a_transaction_leaves_the_one_before(path: Path, statement: str) -> None:
    at = 3 * 40 + 1 if statement == "DELETE" else 5 * 64 if statement == "INSERT" else 5
    kept, given = run_writer(path, statement, at)
    assert kept == 4 * 64
    assert assert_nothing_lost(path, kept, given) == kept


def test_a_killed_process_has_lost_nothing_that_was_kept(path: Path) -> None:
    chance = random.Random(5)
    kept = 0
    for _ in range(10):
        told, given = run_writer(path, lines=chance.randrange(1, 60))
        assert told > kept
        kept = assert_nothing_lost(path, told, given)


# Held and refused.


def test_what_was_attempted_long_ago_is_held(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2)
        take(spool, room=1)
    age(path, HOLD_MS)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.left, spool.held) == (1, 1)
        assert list(map(number_of, take(spool))) == [2]
        assert spool.given == spool.last == 2


def test_what_was_attempted_less_long_ago_is_sent(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1)
        take(spool)
    age(path, HOLD_MS - 60_000)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.left, spool.held) == (1, 0)
        assert len(take(spool)) == 1


def test_the_first_attempt_counts_and_not_the_last(path: Path) -> None:
    """What was sent long ago and again today may be forgotten by consumers all the same."""
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1)
        take(spool)
    age(path, HOLD_MS - 60_000)
    with Spool(path, MAX_BYTES) as spool:
        take(spool)
    age(path, 60_000)
    with Spool(path, MAX_BYTES) as spool:
        assert spool.held == 1


def test_what_was_never_attempted_is_never_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1)
    now = module._now()
    monkeypatch.setattr(module, "_now", lambda: now + 100 * HOLD_MS)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.left, spool.held) == (1, 0)


def test_a_refused_record_is_kept_and_not_given_again(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2)
        take(spool)
        spool.refuse(1, "too large")
        spool.refuse(1, "too large")
        spool.refuse(7, "too large")
        assert (spool.left, spool.refused) == (1, 1)
        take(spool, 0, (1,))
        assert (spool.left, spool.refused) == (1, 1)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.left, spool.refused) == (1, 1)
        assert list(map(number_of, take(spool))) == [2]


def test_accepted_duplicates_come_last_as_if_they_were_new(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOVED_AT_ONCE", 2)
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2, 3, 4, 5, 6, 7)
        take(spool, room=6)
        spool.refuse(5, "too large")
    age(path, HOLD_MS)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.left, spool.held, spool.refused) == (1, 5, 1)
        before = spool.bytes
        assert spool.accept_duplicates() == 6
        assert (spool.left, spool.held, spool.refused, spool.last) == (7, 0, 0, 13)
        assert spool.bytes == before
        assert spool.accept_duplicates() == 0
        given = spool.exchange([], [], room=99, partition_of=lambda _: 9)
    assert [(r.sequence, number_of(r)) for r in given] == list(
        zip(range(7, 14), (7, 1, 2, 3, 4, 5, 6), strict=True)
    )
    assert {r.partition for r in given} == {9}
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.left, spool.held, spool.last) == (7, 0, 13)


def test_what_is_attempted_long_ago_by_now_is_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2, 3, 4)
        take(spool, room=3)
        spool.exchange([], [1], room=0, partition_of=None)
    with Spool(path, MAX_BYTES) as spool:
        # In memory, and so the sender's to watch; the other waits in the file.
        [second] = take(spool, room=1)
        now = module._now()
        monkeypatch.setattr(module, "_now", lambda: now + HOLD_MS + 1)
        put(spool, 5)
        assert (spool.left, spool.held) == (3, 1)
        assert list(map(number_of, take(spool))) == [4, 5]
        spool.hold([second.sequence])
        spool.hold([second.sequence])
        assert (spool.left, spool.held) == (2, 2)
        assert summary(path).held == 2
        assert spool.accept_duplicates() == 2


def test_what_was_held_stays_held_when_the_clock_is_set_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows it in its partition has been sent meanwhile, and it would be a duplicate."""
    now = module._now()
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1, 2)
        take(spool, room=1)
    with Spool(path, MAX_BYTES) as spool:
        with monkeypatch.context() as patch:
            patch.setattr(module, "_now", lambda: now + 365 * 24 * 3600 * 1000)
            assert list(map(number_of, take(spool))) == [2]
        assert take(spool) == []
        assert (spool.left, spool.held) == (1, 1)
    with Spool(path, MAX_BYTES) as spool:
        assert (spool.left, spool.held) == (1, 1)
        assert list(map(number_of, take(spool))) == [2]


# Partitions that wait.


def test_the_records_of_a_partition_are_passed_over_until_it_goes_on(spool: Spool) -> None:
    put(spool, *range(7, 21))
    first = spool.exchange([], [], room=3, partition_of=partition_of, passed={0, 1})
    assert list(map(number_of, first)) == [9, 10, 11]
    new = [record(21), record(23)]
    second = spool.exchange(new, [], room=99, partition_of=partition_of, passed={0, 1})
    assert list(map(number_of, second)) == [12, 13, 16, 17, 18, 19, 20, 23]
    assert spool.given == spool.last
    third = spool.exchange([record(24)], [], room=99, partition_of=partition_of, passed={1})
    assert list(map(number_of, third)) == [7, 14, 21, 24]
    assert list(map(number_of, take(spool))) == [8, 15]
    assert take(spool) == []


def test_what_is_taken_back_is_given_again_before_later_records(spool: Spool) -> None:
    put(spool, 1, 2, 3, 4)
    given = take(spool)
    spool.take_back([given[1].sequence, given[2].sequence])
    spool.exchange([], [given[2].sequence], room=0, partition_of=None)
    assert spool.left == 4
    again = spool.exchange([record(5)], [], room=9, partition_of=lambda _: 99)
    assert again[:2] == given[1:3]
    assert list(map(number_of, again)) == [2, 3, 5]


def test_the_reasons_to_wait_can_be_read_by_others_and_afterwards(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        spool.note_reasons({3: "no leader", -1: "Kafka is away"})
        assert summary(path).reasons == {-1: "Kafka is away", 3: "no leader"}
        spool.note_reasons({4: "no leader"})
    assert summary(path).reasons == {4: "no leader"}
    with Spool(path, MAX_BYTES) as spool:
        assert spool.reasons == {4: "no leader"}
        spool.note_reasons({})
    assert summary(path).reasons == {}


def test_a_file_of_before_there_were_reasons_is_read_and_used(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, 1)
        spool._connection.execute("DROP TABLE waits")
    assert (summary(path).left, summary(path).reasons) == (1, {})
    with Spool(path, MAX_BYTES) as spool:
        spool.note_reasons({0: "no leader"})
        assert summary(path).reasons == {0: "no leader"}


def test_records_of_partitions_that_are_no_more_get_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOVED_AT_ONCE", 2)
    with Spool(path, MAX_BYTES) as spool:
        put(spool, *range(1, 8))
        take(spool, room=6)
    with Spool(path, MAX_BYTES) as spool:
        assert spool.accept_partitions(3) == 4
        assert spool.accept_partitions(3) == 0
        assert (spool.left, spool.last) == (7, 11)
        given = spool.exchange([], [], room=99, partition_of=lambda _: 2)
    assert [(r.sequence, number_of(r), r.partition) for r in given] == [
        *((1, 1, 1), (2, 2, 2), (7, 7, 2)),
        *((8, 3, 2), (9, 4, 2), (10, 5, 2), (11, 6, 2)),
    ]


# Bounds and failures.


def test_a_full_spool_keeps_nothing_of_it_and_is_usable(path: Path) -> None:
    with Spool(path, 1000) as spool:
        put(spool, 1, size=400)
        take(spool)
        with pytest.raises(SpoolFullError, match=r"spool-1.db: full"):
            put(spool, 2, 3, size=400)
        assert (spool.left, spool.last) == (1, 1)
        put(spool, 2, size=400)
        # What is acknowledged at the same time makes room and is forgotten, also where it fails.
        with pytest.raises(SpoolFullError):
            spool.exchange([record(3, 400), record(4, 400)], [1], room=9, partition_of=partition_of)
        assert (spool.left, summary(path).left) == (1, 1)
        given = spool.exchange([record(3, 400)], [], room=9, partition_of=partition_of)
        assert list(map(number_of, given)) == [2, 3]
    with Spool(path, 1000) as spool, pytest.raises(SpoolFullError):
        put(spool, 4, size=400)


def test_a_disk_that_is_nearly_full_keeps_room_to_send(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(spool, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_RESERVE", 2**60)
        with pytest.raises(SpoolFullError, match="the disk is nearly full"):
            put(spool, 3)
        assert len(take(spool)) == 2
        take(spool, 0, (1,))
    assert summary(spool.path).left == 1
    put(spool, 3)
    assert spool.left == 2


def test_a_full_disk_keeps_nothing_of_it_and_is_usable(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, *range(1, 51), size=500)
        take(spool, room=50)
        pages = spool._connection.execute("PRAGMA page_count").fetchone()[0]
        spool._connection.execute(f"PRAGMA max_page_count = {pages}")
        before = (spool.left, spool.last, spool.bytes, spool.given)
        with pytest.raises(SpoolFullError, match="the disk is full") as failure:
            put(spool, *range(51, 101), size=500)
        assert isinstance(failure.value.__cause__, sqlite3.OperationalError)
        assert (spool.left, spool.last, spool.bytes, spool.given) == before
        # What was acknowledged with what failed is forgotten without being said again.
        with pytest.raises(SpoolFullError):
            spool.exchange(
                [record(n, 5000) for n in range(51, 101)],
                list(range(1, 41)),
                room=0,
                partition_of=None,
            )
        assert spool.left == 10
        given = spool.exchange([record(51)], [], room=9, partition_of=partition_of)
        assert [(r.sequence, number_of(r)) for r in given] == [(51, 51)]
    with Spool(path, MAX_BYTES) as spool:
        assert spool.left == 11


_LIMITED = """
import resource, sys
from pathlib import Path
from execution_events.errors import RetryableError, SpoolFullError
from execution_events.publisher.record import NewRecord
from execution_events.publisher.spool.spool import Spool

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

spool = Spool(Path(sys.argv[1]), 2**26)
new = [NewRecord(b"key", b"x" * 1000, None, 0)] * 64
spool.exchange(new, [], room=0, partition_of=None)
limit(100_000)
for _ in range(3):
    try:
        spool.exchange(new, [], room=0, partition_of=None)
    except SpoolFullError:
        sys.exit("full")
    except RetryableError as error:
        print(error)
limit(resource.RLIM_INFINITY)
given = spool.exchange(new, [], room=1000, partition_of=lambda key: 0)
print([spool.left, len(given), given[-1].sequence])
"""


def test_a_write_that_fails_is_retryable_and_leaves_the_spool_usable(path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    *errors, last = ended.stdout.splitlines()
    assert errors
    assert {error.partition(": ")[0] for error in errors} == {str(path)}
    assert all("SQLITE_IOERR" in error for error in errors)
    kept = (4 - len(errors) + 1) * 64
    assert last == str([kept, kept, kept])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for open_it in (lambda path: Spool(path, MAX_BYTES), summary):
        with pytest.raises(RetryableError, match=r"absent.db: cannot be used: SQLITE_CANTOPEN"):
            open_it(tmp_path / "absent.db")
    assert list(tmp_path.iterdir()) == []


def test_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
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


def test_a_closed_spool_is_closed_once(path: Path) -> None:
    released: list[int] = []
    spool = Spool(path, MAX_BYTES, lambda: released.append(1))
    spool.close()
    spool.close()
    assert released == [1]


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


def test_a_file_that_lost_all_but_its_wal_keeps_that(path: Path) -> None:
    run_writer(path, lines=3)
    wal = Path(f"{path}-wal")
    content = wal.read_bytes()
    assert content
    os.truncate(path, 0)
    for open_it in (lambda path: Spool(path, MAX_BYTES), summary):
        with pytest.raises(SpoolCorruptError):
            open_it(path)
    assert wal.read_bytes() == content


def test_a_file_damaged_in_use_is_noticed(path: Path) -> None:
    with Spool(path, MAX_BYTES) as spool:
        put(spool, *range(5000), size=1000)
        spool._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = path.stat().st_size // 4096
        for page in range(10, pages):
            overwrite(path, page * 4096, b"\xa5" * 4096)
        with pytest.raises(SpoolCorruptError, match=r"spool-1.db: damaged: SQLITE_CORRUPT"):
            take(spool, 5000)


@pytest.mark.parametrize("content", [b"x" * 500, TRACEPARENT.encode()])
def test_bytes_that_changed_on_the_disk_are_not_sent(path: Path, content: bytes) -> None:
    with Spool(path, MAX_BYTES) as spool:
        new = NewRecord(b"key", b"x" * 500, TRACEPARENT, 0)
        spool.exchange([new], [], room=0, partition_of=None)
    place = path.read_bytes().index(content)
    overwrite(path, place, b"\xff")
    with Spool(path, MAX_BYTES) as spool, pytest.raises(SpoolCorruptError):
        take(spool)


# Against a model.


class _Kept:
    def __init__(self, sequence: int, new: NewRecord) -> None:
        self.sequence = sequence
        self.new = new
        self.partition: int | None = None
        self.state = "waiting"  # or in flight, held, refused


class Model(RuleBasedStateMachine):
    """The spool does what a list does."""

    BOUND = 600

    @initialize()
    def make(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.path = Path(self.place.name) / "spool.db"
        create(self.path)
        self.spool = Spool(self.path, self.BOUND)
        self.kept: list[_Kept] = []
        self.last = 0
        self.count = 0
        self.opened = 0

    def teardown(self) -> None:
        self.spool.close()
        self.place.cleanup()

    def in_state(self, *states: str) -> list[_Kept]:
        return [kept for kept in self.kept if kept.state in states]

    def bytes(self, new: list[NewRecord]) -> int:
        return sum(len(r.key) + len(r.value) + len(r.traceparent or "") + 32 for r in new)

    @rule(
        sizes=st.lists(st.integers(0, 60), max_size=4),
        acknowledged=st.lists(st.integers(0, 12), max_size=4),
        room=st.integers(0, 5),
        connected=st.booleans(),
        passed=st.frozensets(st.integers(0, 6), max_size=5),
    )
    def exchange(
        self,
        sizes: list[int],
        acknowledged: list[int],
        room: int,
        connected: bool,
        passed: frozenset[int],
    ) -> None:
        new = []
        for size in sizes:
            self.count += 1
            new.append(replace(record(self.count, size), traceparent="t" * (size % 3) or None))
        flying = self.in_state("in flight")
        done = [flying[i] for i in acknowledged if i < len(flying)]
        call = (new, [kept.sequence for kept in done])
        opened = self.opened

        def partition_of_key(key: bytes) -> int:
            return (partition_of(key) + opened) % 7

        partitioner = partition_of_key if connected else None
        self.kept = [kept for kept in self.kept if kept not in done]
        if new and self.bytes([kept.new for kept in self.kept] + new) > self.BOUND:
            with pytest.raises(SpoolFullError):
                self.spool.exchange(*call, room=room, partition_of=partitioner, passed=passed)
            return
        for one in new:
            self.last += 1
            self.kept.append(_Kept(self.last, one))
        expected: list[tuple[_Kept, int]] = []
        for kept in self.in_state("waiting") if connected else ():
            place = partition_of_key(kept.new.key) if kept.partition is None else kept.partition
            if len(expected) < room and place not in passed:
                expected.append((kept, place))
        for kept, place in expected:
            kept.state, kept.partition = "in flight", place
        given = self.spool.exchange(*call, room=room, partition_of=partitioner, passed=passed)
        assert timeless(given) == [
            attempted(kept.sequence, place, kept.new) for kept, place in expected
        ]

    @rule(which=st.lists(st.integers(0, 5), max_size=3))
    def take_back(self, which: list[int]) -> None:
        flying = self.in_state("in flight")
        returned = [flying[i] for i in which if i < len(flying)]
        for kept in returned:
            kept.state = "waiting"
        self.spool.take_back([kept.sequence for kept in returned])

    @rule(which=st.lists(st.integers(0, 5), max_size=3))
    def hold(self, which: list[int]) -> None:
        flying = self.in_state("in flight")
        held = [flying[i] for i in set(which) if i < len(flying)]
        for kept in held:
            kept.state = "held"
        self.spool.hold([kept.sequence for kept in held])

    @rule(partitions=st.integers(0, 7))
    def accept_partitions(self, partitions: int) -> None:
        if not self.in_state("in flight"):
            stranded = [
                kept for kept in self.in_state("waiting") if (kept.partition or 0) >= partitions > 0
            ]
            for kept in stranded:
                self.last += 1
                self.kept.remove(kept)
                self.kept.append(_Kept(self.last, kept.new))
            if partitions:
                assert self.spool.accept_partitions(partitions) == len(stranded)

    @rule(which=st.integers(0, 3))
    def refuse(self, which: int) -> None:
        flying = self.in_state("in flight")
        if which < len(flying):
            flying[which].state = "refused"
            self.spool.refuse(flying[which].sequence, "too large")

    @rule(aged=st.booleans())
    def reopen(self, aged: bool) -> None:
        self.spool.close()
        if aged:
            age(self.path, HOLD_MS)
        for kept in self.in_state("waiting", "in flight"):
            kept.state = "held" if kept.partition is not None and aged else "waiting"
        self.spool = Spool(self.path, self.BOUND)
        self.opened += 1

    @rule()
    def accept_duplicates(self) -> None:
        aside = self.in_state("held", "refused")
        for kept in aside:
            self.last += 1
            self.kept.remove(kept)
            self.kept.append(_Kept(self.last, kept.new))
        assert self.spool.accept_duplicates() == len(aside)

    @invariant()
    def agree(self) -> None:
        spool = self.spool
        assert spool.left == len(self.in_state("waiting", "in flight"))
        assert spool.held == len(self.in_state("held"))
        assert spool.refused == len(self.in_state("refused"))
        assert spool.bytes == self.bytes([kept.new for kept in self.kept])
        assert spool.last == self.last
        waiting = self.in_state("waiting")
        assert spool.given == spool.last or waiting
        over = {kept.partition for kept in waiting if kept.sequence <= spool.given}
        assert not over or over - {None} <= spool._passed.keys() != set()
        oldest = min((kept.new.timestamp for kept in self.kept), default=None)
        assert summary(self.path) == (
            (spool.source, spool.left, spool.held, spool.refused, spool.bytes, oldest, {})
        )


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
