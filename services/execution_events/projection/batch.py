"""One batch of records, projected onto what its transaction stores.

Reading a record needs nothing but the record, so it is done before the transaction; duplicates are
known only by the watermarks that the transaction has read.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from execution_events import wire
from execution_events.errors import RecordRefusedError
from execution_events.events import Occurrence
from execution_events.projection.fold import FoldedEvent, fold
from execution_events.wire import Origin, Record

SourceKey = tuple[int, str]
"""(partition, source): what has one watermark."""


class Refusal(NamedTuple):
    """Why a record is refused: one of `wire.REASONS`, and a sentence for an operator."""

    reason: str
    detail: str


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A refused record as it was, and why."""

    record: Record
    refusal: Refusal


class ReadRecord(msgspec.Struct, frozen=True, gc=False):
    """A record's place and origin, and the occurrence that it carries or why it is refused.

    `record` is the record itself where it was kept: with its headers it takes more memory than all
    that was read of it.
    """

    partition: int
    offset: int
    has_key: bool
    origin: Origin | None
    outcome: Occurrence | DeadLetter
    record: Record | None


class Projection(msgspec.Struct, frozen=True):
    """What one batch adds.

    `events` are sorted by identity, the order in which every writer takes its locks. `watermarks`
    holds the new watermark of each source that the batch moved. `duplicates` were dropped;
    `gaps` counts records whose sequence was not the one after its source's watermark.
    """

    events: list[FoldedEvent]
    dead_letters: list[DeadLetter]
    watermarks: dict[SourceKey, int]
    duplicates: int
    gaps: int
    without_key: int


def read(record: Record, keep: bool = True) -> ReadRecord:
    """Read one record. Total: a record that cannot be read is one that is refused."""
    origin = None
    outcome: Occurrence | DeadLetter
    try:
        origin = wire.decode_origin(record.headers)
        outcome = wire.decode(record.key, record.value, record.timestamp)
    except RecordRefusedError as error:
        outcome = DeadLetter(record, Refusal(error.reason, error.detail))
    return ReadRecord(
        record.partition,
        record.offset,
        record.key is not None,
        origin,
        outcome,
        record if keep else None,
    )


def project(records: Iterable[ReadRecord], watermarks: Mapping[SourceKey, int]) -> Projection:
    """Project records, in log order within each partition, onto what their batch stores.

    `watermarks` holds the stored watermark of each source of the batch that has one. A refused
    record moves its source's watermark like any other, so that a copy of it is a duplicate.
    """
    occurrences: list[Occurrence] = []
    dead_letters: list[DeadLetter] = []
    moved: dict[SourceKey, int] = {}
    duplicates = gaps = without_key = 0
    for record in records:
        origin, outcome = record.origin, record.outcome
        if origin is not None:
            key = (record.partition, origin.source)
            sequence = origin.sequence
            watermark = moved.get(key)
            if watermark is None:
                watermark = watermarks.get(key)
            if watermark is not None:
                if sequence <= watermark:
                    duplicates += 1
                    continue
                if sequence != watermark + 1:
                    gaps += 1
            moved[key] = sequence
        if isinstance(outcome, Occurrence):
            occurrences.append(outcome)
            without_key += not record.has_key
        else:
            dead_letters.append(outcome)
    folded = fold(occurrences)
    return Projection(
        events=[folded[identity] for identity in sorted(folded)],
        dead_letters=dead_letters,
        watermarks=moved,
        duplicates=duplicates,
        gaps=gaps,
        without_key=without_key,
    )
