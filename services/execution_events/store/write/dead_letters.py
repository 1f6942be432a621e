"""Refused records: stored within limits, listed, retried and discarded."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

import asyncpg

from execution_events.errors import BatchRefusedError
from execution_events.events import Occurrence
from execution_events.projection.batch import DeadLetter, Refusal, read
from execution_events.projection.fold import first_objects, fold
from execution_events.store.connection import (
    connect,
    fetch_one,
    refused_rows,
    translated_errors,
)
from execution_events.store.schema.migrate import require_compatible
from execution_events.store.schema.roles import require_right
from execution_events.store.sql import load_queries
from execution_events.store.write.events import prepare, write_events
from execution_events.store.write.known import KnownExecutions
from execution_events.wire import REFUSED_BY_DATABASE, Headers, Record

_SQL = load_queries("dead_letters")
_PAGE = 100

RECORD_MAX_BYTES = 1024 * 1024
"""Maximum size of key, value and headers of a record that is stored whole."""
TRUNCATED_BYTES = 64 * 1024
"""Bytes stored of each of the key, the value and the headers of a larger record."""


class Truncation(NamedTuple):
    """The sizes and hash of a truncated record; None for a missing key or value."""

    key_bytes: int | None
    value_bytes: int | None
    headers: int
    value_sha256: bytes | None


class StoredRecord(NamedTuple):
    """A record as it is stored: unchanged if `truncation` is None."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    truncation: Truncation | None


def truncate(record: Record) -> StoredRecord:
    """Truncate a record over `RECORD_MAX_BYTES` to the first `TRUNCATED_BYTES` of each part.

    Headers are stored whole or not at all.
    """
    key, value, headers = record.key, record.value, record.headers
    size = len(key or b"") + len(value or b"") + sum(map(_header_bytes, headers))
    if size <= RECORD_MAX_BYTES:
        return StoredRecord(key, value, headers, None)
    return StoredRecord(
        key=None if key is None else key[:TRUNCATED_BYTES],
        value=None if value is None else value[:TRUNCATED_BYTES],
        headers=list(_first_headers(headers)),
        truncation=Truncation(
            key_bytes=None if key is None else len(key),
            value_bytes=None if value is None else len(value),
            headers=len(headers),
            value_sha256=None if value is None else sha256(value).digest(),
        ),
    )


def _first_headers(headers: Headers) -> Iterable[tuple[str, bytes | None]]:
    remaining = TRUNCATED_BYTES
    for header in headers:
        remaining -= _header_bytes(header)
        if remaining < 0:
            return
        yield header


def _header_bytes(header: tuple[str, bytes | None]) -> int:
    name, value = header
    return len(name.encode()) + len(value or b"")


async def insert_dead_letters(
    connection: asyncpg.Connection, topic: str, letters: Sequence[DeadLetter]
) -> None:
    """Store refused records of `topic`, each truncated, in the caller's transaction."""
    if letters:
        await connection.executemany(
            _SQL["insert_dead_letter"], [_row(topic, letter) for letter in letters]
        )


def _row(topic: str, letter: DeadLetter) -> tuple[object, ...]:
    record, refusal = letter.record, letter.refusal
    key, value, headers, truncation = truncate(record)
    return (
        topic,
        record.partition,
        record.offset,
        record.timestamp,
        key,
        value,
        [name.encode() for name, _ in headers],
        [value for _, value in headers],
        refusal.reason,
        refusal.detail,
        truncation is not None,
        *(truncation or [None] * len(Truncation._fields)),
    )


class State(StrEnum):
    """The state of a dead letter; retried and discarded are final."""

    OPEN = "open"
    RETRIED = "retried"
    DISCARDED = "discarded"


class Filter(NamedTuple):
    """Filters on dead letters, joined by AND; None or empty means any.

    `reason` matches that of the first refusal or of the last retry. `since` <= `refused_at` <
    `until`.
    """

    ids: Sequence[int] = ()
    state: State | None = None
    reason: str | None = None
    topic: str | None = None
    partition: int | None = None
    since: datetime | None = None
    until: datetime | None = None


class ListedDeadLetter(NamedTuple):
    """A refused record, its refusal and its state.

    `timestamp` is the record's, in milliseconds since the Unix epoch, -1 for none. `key` and
    `value_begin` are the first 256 bytes, `value_bytes` is the length of the whole value; they are
    None for a missing key or value. `attempts` counts retries; `last_reason` and `last_detail` are
    those of the last failed retry.
    """

    id: int
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value_bytes: int | None
    value_begin: bytes | None
    reason: str
    detail: str
    refused_at: datetime
    state: str
    attempts: int
    last_attempt_at: datetime | None
    last_reason: str | None
    last_detail: str | None
    retried_at: datetime | None
    discarded_at: datetime | None
    truncated: bool


class Content(NamedTuple):
    """The stored bytes of a record.

    `key_bytes`, `value_sha256` and `header_count` describe the whole record.
    """

    key: bytes | None
    key_bytes: int | None
    value: bytes | None
    value_sha256: bytes | None
    header_count: int
    headers: Headers


class Result(StrEnum):
    """The result of a retry or discard.

    `TRUNCATED`: the letter cannot be retried, as its record was truncated. `CLOSED`: it does not
    exist, or was retried or discarded before.
    """

    DONE = "done"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    CLOSED = "closed"


class Outcome(NamedTuple):
    """A result, with the refusal of a retry that was refused again."""

    result: Result
    refusal: Refusal | None = None


class _Record(NamedTuple):
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class DeadLetters:
    """The dead letters of a database, over one connection; not for concurrent use.

    Every method raises `RetryableError` if PostgreSQL is unavailable and `HaltError` for other
    errors.
    """

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._prepared = False

    @classmethod
    @asynccontextmanager
    async def open(cls, database_url: str) -> AsyncIterator["DeadLetters"]:
        """Connect and check the schema."""
        async with connect(database_url, "execution-events dead-letters") as connection:
            await require_compatible(connection)
            await require_right(connection, "dead_letter", "SELECT", "execution_events_writer")
            yield cls(connection)

    async def list(self, selection: Filter) -> AsyncIterator[ListedDeadLetter]:
        """List the selected dead letters, oldest first, read in pages."""
        after = 0
        while True:
            with translated_errors():
                rows = await self._connection.fetch(
                    _SQL["list_dead_letters"], *selection, after, _PAGE
                )
            for row in rows:
                yield ListedDeadLetter(*row)
            if len(rows) < _PAGE:
                return
            after = rows[-1]["id"]

    async def count(self, selection: Filter) -> tuple[int, int]:
        """Return the number of selected dead letters and their greatest id, 0 for none."""
        with translated_errors():
            row = await fetch_one(self._connection, _SQL["count_dead_letters"], *selection)
        return row["letters"], row["last"]

    async def content(self, letter: int) -> Content | None:
        """Return the bytes of a dead letter, None if it does not exist."""
        with translated_errors():
            row = await self._connection.fetchrow(_SQL["content"], letter)
        if row is None:
            return None
        return Content(
            key=row["key"],
            key_bytes=row["key_bytes"],
            value=row["value"],
            value_sha256=row["value_sha256"],
            header_count=row["header_count"],
            headers=_headers(row),
        )

    async def retry(self, letter: int) -> Outcome:
        """Store an open letter's record as if it came last in its partition, in one transaction.

        The record counts exactly once, through concurrent retries and crashes: its state changes in
        the same transaction. Watermarks are neither checked nor moved. A letter that is refused
        again stays open, and the attempt is recorded.
        """
        with translated_errors():
            if not self._prepared:
                await prepare(self._connection)
                self._prepared = True
            async with self._connection.transaction():
                row = await self._connection.fetchrow(_SQL["lock_open"], letter)
                if row is None:
                    return Outcome(Result.CLOSED)
                if row["truncated"]:
                    return Outcome(Result.TRUNCATED)
                refusal = await self._apply(_record(row))
                if refusal is not None:
                    await self._connection.execute(_SQL["mark_refused_again"], letter, *refusal)
                    return Outcome(Result.REFUSED, refusal)
                await self._connection.execute(_SQL["mark_retried"], letter)
                return Outcome(Result.DONE)

    async def discard(self, letter: int) -> Outcome:
        """Close an open letter without storing its record; it is kept until it is pruned."""
        with translated_errors():
            discarded = await self._connection.fetchval(_SQL["discard"], letter)
        return Outcome(Result.CLOSED if discarded is None else Result.DONE)

    async def _apply(self, record: Record) -> Refusal | None:
        """Fold `record` into its event, or return its refusal and change nothing."""
        outcome = read(record).outcome
        if not isinstance(outcome, Occurrence):
            return outcome.refusal
        try:
            # A savepoint, so that the letter stays locked if the database refuses the row.
            async with self._connection.transaction():
                with refused_rows():
                    await write_events(
                        self._connection,
                        list(fold([outcome]).values()),
                        first_objects([outcome]),
                        KnownExecutions(),
                    )
        except BatchRefusedError as error:
            return Refusal(REFUSED_BY_DATABASE, error.detail)
        return None


def _record(row: asyncpg.Record) -> _Record:
    return _Record(
        partition=row["partition"],
        offset=row["record_offset"],
        timestamp=row["record_timestamp"],
        key=row["key"],
        value=row["value"],
        headers=_headers(row),
    )


def _headers(row: asyncpg.Record) -> Headers:
    names = (name.decode() for name in row["header_names"])
    return list(zip(names, row["header_values"], strict=True))
