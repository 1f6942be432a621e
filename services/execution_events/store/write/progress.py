"""Progress of consumption: stored offsets of partitions, and watermarks of sources.

Each function runs in the caller's transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

import asyncpg

from execution_events.errors import FencedError, PartitionsLockedError
from execution_events.projection.batch import SourceKey
from execution_events.projection.fingerprint import Fingerprint
from execution_events.store.schema.migrate import require_version
from execution_events.store.sql import load_queries

_SQL = load_queries("progress")

_NO_FINGERPRINT = (None, None, None)


class OffsetMove(NamedTuple):
    """A partition's stored offset before and after a batch, in one epoch of its log."""

    expected: int
    next: int
    epoch: int = 0


class StoredPosition(NamedTuple):
    """A partition's stored offset and the identity of its log; None if not known.

    Each log that an operator accepts in place of another begins a new epoch.
    """

    epoch: int
    next_offset: int
    cluster_id: str | None
    last: Fingerprint | None


async def stored_positions(
    connection: asyncpg.Connection, topic: str, partitions: Sequence[int]
) -> dict[int, StoredPosition]:
    """Return the stored position of each partition that has one."""
    rows = await connection.fetch(_SQL["stored_positions"], topic, partitions)
    return {partition: _position(*position) for partition, *position in rows}


async def move_offsets(
    connection: asyncpg.Connection,
    topic: str,
    moves: Mapping[int, OffsetMove],
    fingerprints: Mapping[int, Fingerprint],
) -> None:
    """Lock the partitions and compare and set their stored offsets.

    `fingerprints` holds the last record of each partition that has one; the others keep theirs.
    Raises `FencedError`, or `PartitionsLockedError` without waiting for other sessions, or
    `HaltError` if the schema has become incompatible.
    """
    last = [fingerprints.get(partition, _NO_FINGERPRINT) for partition in moves]
    rows = await connection.fetch(
        _SQL["move_offsets"],
        topic,
        list(moves),
        [move.epoch for move in moves.values()],
        [move.expected for move in moves.values()],
        [move.next for move in moves.values()],
        *([fields[index] for fields in last] for index in range(3)),
    )
    for compatible_from in {row["compatible_from"] for row in rows}:
        require_version(compatible_from)
    if fenced := sorted(row["partition"] for row in rows if not row["moved"]):
        raise FencedError(
            f"another consumer has moved the stored offset of partitions {_listed(fenced)}"
        )
    if len(rows) != len(moves):
        raise PartitionsLockedError(frozenset(moves) - {row["partition"] for row in rows})


async def read_watermarks(
    connection: asyncpg.Connection, topic: str, sources: Iterable[SourceKey]
) -> dict[SourceKey, int]:
    """Return the stored watermark of each source that has one."""
    keys = list(sources)
    if not keys:
        return {}
    rows = await connection.fetch(
        _SQL["watermarks"],
        topic,
        [partition for partition, _ in keys],
        [_source_hash(source) for _, source in keys],
    )
    return {(row["partition"], row["source"]): row["sequence"] for row in rows}


async def move_watermarks(
    connection: asyncpg.Connection, topic: str, watermarks: Mapping[SourceKey, int]
) -> None:
    """Store new watermarks."""
    if watermarks:
        await connection.execute(
            _SQL["move_watermarks"],
            topic,
            [partition for partition, _ in watermarks],
            [source for _, source in watermarks],
            [_source_hash(source) for _, source in watermarks],
            list(watermarks.values()),
        )


def _source_hash(source: str) -> bytes:
    return sha256(source.encode()).digest()


def _listed(partitions: Iterable[int]) -> str:
    return ", ".join(map(str, partitions))


def _position(
    epoch: int,
    next_offset: int,
    cluster_id: str | None,
    offset: int | None,
    timestamp: int | None,
    digest: bytes | None,
) -> StoredPosition:
    if offset is None or timestamp is None or digest is None:
        return StoredPosition(epoch, next_offset, cluster_id, None)
    return StoredPosition(epoch, next_offset, cluster_id, Fingerprint(offset, timestamp, digest))
