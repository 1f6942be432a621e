"""Records and batches of tests."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from execution_events import wire
from execution_events.events import Occurrence
from execution_events.projection.batch import DeadLetter, Refusal, read
from execution_events.store.write.batches import Batch, BatchWriter
from execution_events.store.write.progress import OffsetMove
from execution_events.wire import Headers

DATABASE = Refusal(wire.REFUSED_BY_DATABASE, "CheckViolationError no_bombs (23514)")
"""The refusal of a CHECK constraint that an operator has added."""
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class LogRecord(NamedTuple):
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def occurrence(**fields: Any) -> Occurrence:
    defaults: dict[str, Any] = {
        "execution_id": "execution-1",
        "namespace": "tenant",
        "name": "object.1",
        "object_name": "object",
        "object_namespace": "tenant",
        "reason": "启动##ActionStart",
        "message": "",
        "first_timestamp": EPOCH,
        "last_timestamp": EPOCH,
        "count": 1,
        "type": "Normal",
        "elem_type": "KubeDAG.init",
        "elem_id": "job",
        "action_name": "create",
    }
    return Occurrence(**(defaults | fields))


def log(
    occurrences: Sequence[Occurrence | bytes],
    partition: int = 0,
    begin: int = 0,
    source: str | None = None,
) -> list[LogRecord]:
    records = []
    for offset, content in enumerate(occurrences, begin):
        key, value = (b"k", content) if isinstance(content, bytes) else wire.encode(content)
        headers = () if source is None else wire.encode_headers(source, offset)
        records.append(LogRecord(partition, offset, 0, key, value, headers))
    return records


def batch(records: Sequence[LogRecord], *, begin: int | None = None) -> Batch:
    """Return a batch of one partition's records."""
    first = records[0].offset if begin is None else begin
    return Batch(
        [read(record) for record in records],
        {records[0].partition: OffsetMove(first, records[-1].offset + 1)},
    )


class Log:
    """One partition to append to."""

    def __init__(self, writer: BatchWriter, partition: int = 0, begin: int = 0) -> None:
        self._writer = writer
        self._partition = partition
        self._next = begin

    async def add(self, *occurrences: Occurrence) -> None:
        """Store them in one transaction."""
        await self._store(batch(self._records(occurrences)))

    async def refuse(self, *occurrences: Occurrence) -> None:
        """Store them in one transaction as records that the database has refused."""
        await self._store(refused(self._records(occurrences)))

    def _records(self, occurrences: Sequence[Occurrence]) -> list[LogRecord]:
        return log(occurrences, self._partition, self._next)

    async def _store(self, batch: Batch) -> None:
        await self._writer.store(batch)
        self._next += len(batch.records)


def refused(records: Sequence[LogRecord], *, begin: int | None = None) -> Batch:
    """Return a batch of records that the database has refused."""
    whole = batch(records, begin=begin)
    letters = [DeadLetter(record, DATABASE) for record in records]
    return whole._replace(
        records=[
            msgspec.structs.replace(read_record, outcome=letter)
            for read_record, letter in zip(whole.records, letters, strict=True)
        ]
    )


class NonUtf8Name(str):
    """A header name that is not UTF-8, as producers in other languages can write."""

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"
