"""Projection of a batch of records onto the rows of its transaction.

Records are decoded before the transaction; duplicates are dropped within it, by the watermarks it
has read.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from execution_events import wire
from execution_events.errors import RecordRefusedError
from execution_events.events import Occurrence
from execution_events.projection.fold import FoldedEvent, first_objects, fold
from execution_events.wire import Origin, Record

SourceKey = tuple[int, str]
"""(partition, source), the key of a watermark."""


class Refusal(NamedTuple):
    """The cause of a dead letter: one of `wire.REASONS`, and an explanation for an operator."""

    reason: str
    detail: str


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A refused record and its refusal."""

    record: Record
    refusal: Refusal


class ReadRecord(msgspec.Struct, frozen=True, gc=False):
    """A decoded record: partition, offset, origin, and an occurrence or a dead letter.

    `record` is None unless the caller of `read` keeps it: a record with its headers takes more
    memory than the rest.
    """

    partition: int
    offset: int
    has_key: bool
    origin: Origin | None
    outcome: Occurrence | DeadLetter
    record: Record | None


class Rate(msgspec.Struct):
    """Numbers of one partition's records: all read, the occurrences counted, and those refused."""

    records: int = 0
    occurrences: int = 0
    dead_letters: int = 0


class Projection(msgspec.Struct, frozen=True):
    """The rows that one batch adds.

    `events` are in the order of their first records. `objects` holds the object of the first record
    of each execution and namespace. `watermarks` holds the new watermark of each source that the
    batch moves, and `rates` the numbers of each partition's records.
    `duplicates` counts dropped records; `gaps` counts records whose sequence does not follow their
    source's watermark.
    """

    events: list[FoldedEvent]
    objects: dict[tuple[str, str], str]
    dead_letters: list[DeadLetter]
    watermarks: dict[SourceKey, int]
    rates: dict[int, Rate]
    duplicates: int
    gaps: int
    without_key: int


def read(record: Record, keep: bool = True) -> ReadRecord:
    """Decode one record; never raises: a record that cannot be decoded becomes a dead letter."""
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
    """Project records, in log order within each partition, onto the rows of their batch.

    `watermarks` holds the stored watermarks of the batch's sources. A refused record moves its
    source's watermark like any other, so a copy of it is a duplicate.
    """
    occurrences: list[Occurrence] = []
    dead_letters: list[DeadLetter] = []
    moved: dict[SourceKey, int] = {}
    rates: dict[int, Rate] = {}
    duplicates = gaps = without_key = 0
    partition, rate = -1, Rate()
    for record in records:
        origin, outcome = record.origin, record.outcome
        if record.partition != partition:
            partition = record.partition
            rate = rates.setdefault(partition, Rate())
        rate.records += 1
        if origin is not None:
            key = (partition, origin.source)
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
            rate.occurrences += outcome.count
            without_key += not record.has_key
        else:
            dead_letters.append(outcome)
            rate.dead_letters += 1
    return Projection(
        events=list(fold(occurrences).values()),
        objects=first_objects(occurrences),
        dead_letters=dead_letters,
        watermarks=moved,
        rates=rates,
        duplicates=duplicates,
        gaps=gaps,
        without_key=without_key,
    )
