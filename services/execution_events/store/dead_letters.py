"""The records that were refused, for operators."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg

from execution_events.projection.batch import DeadLetter
from execution_events.store.database import translated_errors
from execution_events.store.sql import load_queries

_SQL = load_queries("dead_letters")
_PAGE = 100


class ListedDeadLetter(NamedTuple):
    """A refused record, and why.

    `record_timestamp` is in milliseconds since the Unix epoch, -1 for none. `value_begin` is the
    first 256 bytes of the value, which has `value_bytes`; both are None where there is no value.
    """

    id: int
    topic: str
    partition: int
    offset: int
    record_timestamp: int
    key: bytes | None
    value_bytes: int | None
    value_begin: bytes | None
    reason: str
    detail: str
    refused_at: datetime


async def insert_dead_letters(
    connection: asyncpg.Connection, topic: str, letters: Sequence[DeadLetter]
) -> None:
    """Keep refused records of `topic`, within the caller's transaction."""
    if not letters:
        return
    await connection.executemany(
        _SQL["insert_dead_letter"],
        [
            (
                topic,
                record.partition,
                record.offset,
                record.timestamp,
                record.key,
                record.value,
                [name.encode() for name, _ in record.headers],
                [value for _, value in record.headers],
                refusal.reason,
                refusal.detail,
            )
            for record, refusal in ((letter.record, letter.refusal) for letter in letters)
        ],
    )


async def list_dead_letters(connection: asyncpg.Connection) -> AsyncIterator[ListedDeadLetter]:
    """All dead letters, oldest first, read in pages."""
    after = 0
    while True:
        with translated_errors():
            rows = await connection.fetch(_SQL["list_dead_letters"], after, _PAGE)
        for row in rows:
            yield ListedDeadLetter(*row)
        if len(rows) < _PAGE:
            return
        after = rows[-1]["id"]
