"""One spool file: records on the disk until Kafka has acknowledged them. No asyncio."""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from math import inf
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from zlib import crc32

from execution_events.clock import now_ms
from execution_events.errors import SpoolCorruptError, SpoolFullError
from execution_events.publisher.record import HOLD_MS, PendingRecord
from execution_events.publisher.spool import queries
from execution_events.publisher.spool.file import SpoolFile, read_summary

_RENEWAL_LIMIT = 1000
"""Records that get new sequences in one transaction."""
_HOLD_INTERVAL_MS = 60_000
"""Milliseconds between two scans of the file for records to hold."""
_RESERVE = 16 * 1024 * 1024
"""Free bytes of the disk that new records leave: sending and deleting a record are writes too, so
a spool that has filled its disk could not be drained."""

PartitionOf = Callable[[bytes], int]
"""Returns the partition of a key."""


class _Fetched(NamedTuple):
    """Records to send, the assignments to store with them, and the position of the next fetch."""

    records: list[PendingRecord]
    assignments: list[tuple[int, int, int]]
    position: int


class Spool:
    """The records of one file; a context manager that closes it and releases its lock.

    The opener holds the lock of the file, which `release` releases. Used by one thread at a time,
    and only by the process that opened it, not by its forks.

    A record is on the disk, fsynced, when `commit` has returned, and stays there until it is
    acknowledged. A method that raises has changed nothing beyond what it documents, and the spool
    remains usable. Errors: `SpoolFullError`, `SpoolCorruptError`, and `RetryableError` when the
    file cannot be read or written. Opening also raises `HaltError` for a file of a newer version.

    Opening reads the whole file once to check it.
    """

    path: Path
    source: str
    """`ce_source` of every record, drawn when the file was created: "urn:uuid:…"."""
    pending: int
    """Number of records neither acknowledged nor held nor refused."""
    held: int
    """Number of records first attempted too long ago: consumers may have forgotten which of them
    they have counted. Not fetched until `accept_duplicates`, even if the clock is set back."""
    refused: int
    """Number of records that Kafka will never accept. Not fetched until `accept_duplicates`."""
    bytes: int
    """Approximate size of all records. The file has at most twice that size, its WAL takes a few
    MiB more, and neither shrinks."""
    last: int
    """The greatest sequence so far."""
    fetched: int
    """Every record up to this sequence was fetched since the file was opened, is not to be sent, or
    was skipped because its partition is blocked."""
    errors: dict[int, str]
    """The errors stored last; see `Summary`."""

    def __init__(
        self, path: Path, max_bytes: int, release: Callable[[], None] = lambda: None
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._in_flight: dict[int, PendingRecord] = {}
        # By blocked partition, the sequence from which its records were skipped.
        self._skipped_from: dict[int, int] = {}
        # Acknowledged, but not yet deleted from the file.
        self._acknowledged: list[int] = []
        self._horizon = now_ms() - HOLD_MS
        self._oldest_attempt: float = inf
        self._release = release
        self._file = SpoolFile(path)
        try:
            self._load()
        except BaseException:
            self._file.close()
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

    def commit(
        self,
        new: Sequence[PendingRecord],
        acknowledged: Sequence[int],
        *,
        limit: int,
        partition_of: PartitionOf | None,
        blocked: Set[int] = frozenset(),
    ) -> list[PendingRecord]:
        """Delete `acknowledged`, store `new` in order, and return the next `limit` records.

        Takes one transaction and one fsync, or none when there is nothing to write. Records are
        fetched in order of sequence, each once since the file was opened, with its partition
        stored: `partition_of(key)` if it has none yet. Without `partition_of` none are fetched.
        Records of `blocked` partitions are skipped until a call without that partition.

        `acknowledged` is deleted even if this raises, at the latest by the next successful commit;
        sequences that are not in flight are ignored. Raises `SpoolFullError`, with nothing of `new`
        stored, when the spool or the disk is full.
        """
        self._file.check_process()
        self._forget(acknowledged)
        size = sum(map(_size, new))
        full = self._full(size) if new else None
        if full is not None:
            new, limit, size = (), 0, 0
        now = now_ms()
        self._hold_old(now)
        fetched, assignments, position = self._fetch(limit, partition_of, blocked, now)
        last = self.last
        rows = []
        for record in new:
            key, value = record.key, record.value
            partition: int | None = None
            # New records are fetched at once unless older ones are waiting in the file.
            if partition_of is not None and position == last and len(fetched) < limit:
                position += 1
                partition = partition_of(key)
                if partition in blocked:
                    partition = None
            last += 1
            attempted_at: int | None = None
            if partition is not None:
                attempted_at = now
                record.sequence = last
                record.partition = partition
                record.attempted_at = now
                fetched.append(record)
            checksum = crc32(value, crc32(key))
            fields = (key, value, record.traceparent, record.created_at)
            rows.append((last, partition, attempted_at, checksum, *fields))
        if self._acknowledged or assignments or rows:
            with self._file.transaction() as connection:
                connection.executemany(queries.DELETE, zip(self._acknowledged))
                connection.executemany(queries.ASSIGN, assignments)
                connection.executemany(queries.INSERT, rows)
        self._acknowledged.clear()
        for record in fetched:
            self._in_flight[record.sequence] = record
        self.last = last
        self.pending += len(rows)
        self.fetched = last if len(self._in_flight) == self.pending else position
        self.bytes += size
        if full is not None:
            raise SpoolFullError(f"{self.path}: {full}")
        return fetched

    def refuse(self, sequence: int, detail: str) -> None:
        """Keep a record in flight that Kafka will never accept, but do not fetch it again.

        `detail` is the reason, without any content of the record. A sequence that is not in flight
        is ignored.
        """
        self._file.check_process()
        if sequence in self._in_flight:
            with self._file.transaction() as connection:
                connection.execute(queries.REFUSE, (detail, sequence))
            del self._in_flight[sequence]
            self.pending -= 1
            self.refused += 1

    def hold(self, sequences: Sequence[int]) -> None:
        """Hold records in flight that were attempted too long ago to be sent again.

        A sequence that is not in flight is ignored.
        """
        self._file.check_process()
        held = [sequence for sequence in sequences if sequence in self._in_flight]
        if held:
            self._hold(held)
            for sequence in held:
                del self._in_flight[sequence]

    def requeue(self, sequences: Iterable[int]) -> None:
        """Return records in flight that will not be sent now; they are fetched again.

        A sequence that is not in flight is ignored.
        """
        self._file.check_process()
        for sequence in sequences:
            record = self._in_flight.pop(sequence, None)
            if record is not None:
                self._oldest_attempt = min(self._oldest_attempt, record.attempted_at)
                self.fetched = min(self.fetched, sequence - 1)

    def store_errors(self, errors: Mapping[int, str]) -> None:
        """Store the errors of blocked partitions for `summary`; see there."""
        self._file.check_process()
        if errors != self.errors:
            with self._file.transaction() as connection:
                connection.execute(queries.DELETE_BLOCKED)
                connection.executemany(queries.INSERT_BLOCKED, list(errors.items()))
            self.errors = dict(errors)

    def accept_duplicates(self) -> int:
        """Return held and refused records to the pending ones; return how many there were.

        They get new sequences at the end, in their order, and count again if they were counted
        before. If this raises, some may have been renewed; the next call renews the others.
        """
        self._file.check_process()
        renewed = 0
        values: dict[str, int] = {"horizon": self._horizon, "limit": _RENEWAL_LIMIT}
        while self.held or self.refused:
            with self._file.transaction() as connection:
                number, refused, values["up_to"] = connection.execute(
                    queries.HELD_OR_REFUSED_UP_TO, values
                ).fetchone()
                _renew(connection, queries.HELD_OR_REFUSED, values)
            renewed += number
            self.refused -= refused
            self.held -= number - refused
            self.pending += number
            self.last += number
        return renewed

    def reassign_partitions(self, partitions: int) -> int:
        """Renew the records of partitions from `partitions` on, so that they get other partitions.

        Must precede the first fetch; otherwise like `accept_duplicates`.
        """
        self._file.check_process()
        values = {"horizon": self._horizon, "limit": _RENEWAL_LIMIT, "partitions": partitions}
        renewed = 0
        while True:
            with self._file.transaction() as connection:
                number, values["up_to"] = connection.execute(
                    queries.STRANDED_UP_TO, values
                ).fetchone()
                if not number:
                    return renewed
                _renew(connection, queries.STRANDED, values)
            renewed += number
            self.last += number

    def close(self) -> None:
        """Close the file and release its lock. Further calls, and calls in a fork, do nothing."""
        if self._file.in_own_process:
            self._file.close()
            self._release()
            self._release = lambda: None

    def _load(self) -> None:
        with self._file.transaction() as connection:
            summary = read_summary(connection, self._horizon)
            connection.execute(queries.HOLD_OLD, {"horizon": self._horizon})
            last = connection.execute(queries.LAST_SEQUENCE).fetchone()
        self.source, self.pending, self.held, self.refused, self.bytes, _, self.errors = summary
        self.last = 0 if last is None else last[0]
        self.fetched = 0 if self.pending else self.last
        self._oldest_attempt = self._find_oldest_attempt()

    def _full(self, size: int) -> str | None:
        """Return the reason for which `size` more bytes do not fit, None if they do."""
        if self.bytes + size > self._max_bytes:
            return (
                f"full: it holds {self.bytes} of {self._max_bytes} bytes: `execution-events spool "
                "list` shows why; EXECUTION_EVENTS_SPOOL_MAX_BYTES is the limit"
            )
        if self._file.free_bytes() < _RESERVE + 2 * size:
            return "the disk is nearly full"
        return None

    def _forget(self, acknowledged: Sequence[int]) -> None:
        for sequence in acknowledged:
            record = self._in_flight.pop(sequence, None)
            if record is not None:
                self._acknowledged.append(sequence)
                self.pending -= 1
                self.bytes -= _size(record)

    def _fetch(
        self, limit: int, partition_of: PartitionOf | None, blocked: Set[int], now: int
    ) -> _Fetched:
        """Return the next records of the file; see `commit`."""
        records: list[PendingRecord] = []
        assignments: list[tuple[int, int, int]] = []
        if partition_of is None:
            return _Fetched(records, assignments, self.fetched)
        position = self._skip(blocked)
        if len(self._in_flight) == self.pending:
            return _Fetched(records, assignments, self.last)
        deleted = set(self._acknowledged)
        query = queries.FETCH.format(blocked=", ".join(map(str, sorted(blocked))))
        while position < self.last and (wanted := limit - len(records)) > 0:
            values = {"position": position, "horizon": self._horizon, "limit": wanted}
            rows = self._file.query(query, values)
            for row in rows:
                checksum, position, partition, attempted_at, key, value, traceparent, created = row
                if checksum != crc32(value, crc32(key)):
                    raise SpoolCorruptError(f"{self.path}: damaged: record {position}")
                if partition is None:
                    partition, attempted_at = partition_of(key), now
                    if partition in blocked:
                        continue
                    assignments.append((partition, now, position))
                if position not in self._in_flight and position not in deleted:
                    records.append(
                        PendingRecord(
                            key, value, traceparent, created, position, partition, attempted_at
                        )
                    )
            if len(rows) < wanted:
                position = self.last
        return _Fetched(records, assignments, position)

    def _skip(self, blocked: Set[int]) -> int:
        """Skip the partitions `blocked` from now on; return the position of the next fetch."""
        position = self.fetched
        for partition in [
            partition for partition in self._skipped_from if partition not in blocked
        ]:
            position = min(position, self._skipped_from.pop(partition))
        for partition in blocked:
            self._skipped_from[partition] = min(
                position, self._skipped_from.get(partition, position)
            )
        self.fetched = position
        return position

    def _hold_old(self, now: int) -> None:
        """Hold records attempted too long ago, except those in flight."""
        horizon = now - HOLD_MS
        due = max(self._oldest_attempt, self._horizon + _HOLD_INTERVAL_MS)
        if due < horizon or self._oldest_attempt < self._horizon:
            horizon = max(horizon, self._horizon)
            found = self._file.query(queries.OLD, {"horizon": horizon})
            excluded = {*self._in_flight, *self._acknowledged}
            self._hold([sequence for [sequence] in found if sequence not in excluded])
            self._horizon = horizon
            self._oldest_attempt = self._find_oldest_attempt()

    def _hold(self, sequences: Sequence[int]) -> None:
        with self._file.transaction() as connection:
            connection.executemany(queries.HOLD, [(sequence,) for sequence in sequences])
        self.pending -= len(sequences)
        self.held += len(sequences)

    def _find_oldest_attempt(self) -> float:
        [[oldest]] = self._file.query(queries.OLDEST_ATTEMPT, {"horizon": self._horizon})
        return inf if oldest is None else float(oldest)


def _renew(connection: sqlite3.Connection, condition: str, values: Mapping[str, int]) -> None:
    """Give records that match `condition`, up to sequence `up_to`, new sequences at the end."""
    connection.execute(queries.RENEW_COPY.format(condition=condition), values)
    connection.execute(queries.RENEW_DELETE.format(condition=condition), values)


def _size(record: PendingRecord) -> int:
    return len(record.key) + len(record.value) + len(record.traceparent or "") + queries.ROW_BYTES
