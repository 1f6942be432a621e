"""The independent check: the model of the log against the contents of PostgreSQL, both ways."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from tests.faults.database import (
    EventRow,
    ExecutionRow,
    LetterRow,
    OffsetMove,
    PipelineRow,
    RateRow,
    Stored,
)
from tests.faults.model import Event, Identity, Model, fold
from tests.faults.record import LogPosition, LogRecord

_K = TypeVar("_K")
_V = TypeVar("_V")

_SHOWN = 20
"""Differences listed for each kind; the rest are counted."""
_TEXT = 500
"""Maximum length of a listed difference: a dead letter may be large."""


class Acknowledged(NamedTuple):
    """An acknowledged record; source and sequence are None for a record without them."""

    position: LogPosition
    source: str | None = None
    sequence: int | None = None


class Published(NamedTuple):
    """Counts by name of a worker's events: those being published, and the durable ones."""

    begun: Mapping[str, int]
    durable: Mapping[str, int]


class Verdict(NamedTuple):
    """The differences. `lost` and `doubled` are numbers of events with a wrong count."""

    lost: int
    doubled: int
    differences: list[str]
    records: int
    events: int
    letters: int
    duplicates: int


def judge(
    records: Sequence[LogRecord],
    stored: Stored,
    ends: Mapping[int, int],
    acknowledged: Iterable[Acknowledged],
    *,
    published: tuple[Mapping[str, int], Mapping[str, int]] = Published({}, {}),
    audited: bool = True,
) -> Verdict:
    """Compare everything stored with the log, and the log with the acknowledgements.

    `records` are those that the product could have read, in log order; `ends` are the expected
    stored offsets. Without `audited`, transactions are not checked.
    """
    model = fold(records)
    expected = model.events()
    lost, doubled = _counts(expected, stored.events)
    differences = [
        *_limited("event", _events(expected, stored.events)),
        *_limited("execution", _executions(expected, stored.executions)),
        *_limited("state", stored.states),
        *_limited("dead letter", _letters(model, stored.letters)),
        *_limited("stored offset", _mapping("partition", ends, stored.progress)),
        *_limited("watermark", _mapping("source", model.watermarks, stored.watermarks)),
        *_limited("rate", _mapping("partition", _rates(records, model), stored.rates)),
        *_limited("pipeline", _pipeline(ends, stored.pipeline)),
        *_limited("acknowledged", _acknowledged(records, model, acknowledged)),
        *_limited("published", _published(expected, Published(*published))),
        *_limited("audit", _audit(model, stored, ends) if audited else ()),
    ]
    return Verdict(
        lost,
        doubled,
        differences,
        len(records),
        len(expected),
        len(model.letters),
        len(records) - len(model.letters) - len(model.counted),
    )


def _counts(
    expected: Mapping[Identity, Event], actual: Mapping[Identity, EventRow]
) -> tuple[int, int]:
    lost = doubled = 0
    for identity in expected.keys() | actual.keys():
        wanted = expected[identity].count if identity in expected else 0
        found = actual[identity].occurrences if identity in actual else 0
        lost += found < wanted
        doubled += found > wanted
    return lost, doubled


def _events(
    expected: Mapping[Identity, Event], actual: Mapping[Identity, EventRow]
) -> Iterable[str]:
    for identity in sorted(expected.keys() | actual.keys()):
        name = "/".join(identity)
        if identity not in actual:
            yield f"{name}: missing, {expected[identity].count} occurrences"
        elif identity not in expected:
            yield f"{name}: never published, {actual[identity].occurrences} occurrences"
        else:
            wanted, found = expected[identity], actual[identity]
            if found.occurrences != wanted.count:
                gap = _gap(wanted, found)
                yield f"{name}: count {found.occurrences}, not {wanted.count}: {gap}"
            if found.first != wanted.first:
                yield f"{name}: first_timestamp {found.first}, not {wanted.first}"
            if found.last != wanted.last:
                yield f"{name}: last_timestamp {found.last}, not {wanted.last}"
            if found.fields not in wanted.fields:
                yield f"{name}: fields {found.fields}, not {wanted.fields}"
            if found.list_position not in wanted.list_positions:
                yield f"{name}: list_position {found.list_position}, not {wanted.list_positions}"


def _gap(wanted: Event, found: EventRow) -> str:
    gap = found.occurrences - wanted.count
    return f"{gap} too many" if gap > 0 else f"{-gap} lost"


def _executions(
    events: Mapping[Identity, Event], actual: Mapping[tuple[str, str], ExecutionRow]
) -> Iterable[str]:
    grouped: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for (execution_id, namespace, _), event in events.items():
        grouped[execution_id, namespace].append(event)
    expected = {
        key: ExecutionRow(
            len(members),
            sum(event.count for event in members),
            min(event.first for event in members),
            max(event.last for event in members),
        )
        for key, members in grouped.items()
    }
    yield from _mapping("execution", expected, actual)


def _letters(model: Model, actual: Sequence[tuple[LogPosition, LetterRow]]) -> Iterable[str]:
    found: dict[LogPosition, LetterRow] = {}
    for position, row in actual:
        if position in found:
            yield f"{position}: stored twice"
        found[position] = row
    expected = {
        position: LetterRow(record.timestamp, record.key, record.value, record.headers, reason)
        for position, (record, reason) in model.letters.items()
    }
    yield from _mapping("record", expected, found)


def _rates(records: Iterable[LogRecord], model: Model) -> dict[int, RateRow]:
    read = Counter(record.partition for record in records)
    letters = Counter(partition for partition, _ in model.letters)
    counted: Counter[int] = Counter()
    for (partition, _), count in model.counted.items():
        counted[partition] += count
    return {
        partition: RateRow(number, counted[partition], letters[partition])
        for partition, number in read.items()
    }


def _pipeline(ends: Mapping[int, int], actual: Mapping[int, PipelineRow]) -> Iterable[str]:
    """Check the offsets; the end of the log may have been seen some time ago."""
    for partition in ends.keys() | actual.keys():
        end, row = ends.get(partition), actual.get(partition)
        if end is None or row is None:
            yield f"partition {partition}: {row}, the log ends at {end}"
        elif row.next_offset != end:
            yield f"partition {partition}: {row}, stored up to {end}"
        elif row.log_end is not None and (row.log_end > end or row.lag):
            yield f"partition {partition}: {row} beyond the log's end at {end}"


def _mapping(what: str, expected: Mapping[_K, _V], actual: Mapping[_K, _V]) -> Iterable[str]:
    for key in expected.keys() | actual.keys():
        if key not in actual:
            yield f"{what} {key}: missing, expected {expected[key]}"
        elif key not in expected:
            yield f"{what} {key}: {actual[key]}, expected none"
        elif actual[key] != expected[key]:
            yield f"{what} {key}: {actual[key]}, not {expected[key]}"


def _acknowledged(
    records: Sequence[LogRecord], model: Model, acknowledged: Iterable[Acknowledged]
) -> Iterable[str]:
    positions = {record.position for record in records}
    for promise in acknowledged:
        if promise.position not in positions:
            yield f"{promise.position} is not in the log"
        elif promise.source is not None and promise.sequence is not None:
            partition, _ = promise.position
            if (promise.source, partition, promise.sequence) not in model.origins:
                yield f"no copy of {promise} counts: the worker broke the order"


def _published(events: Mapping[Identity, Event], published: Published) -> Iterable[str]:
    """Compare the counts by name; each name belongs to one published event."""
    counts: dict[str, int] = defaultdict(int)
    for (_, _, name), event in events.items():
        counts[name] += event.count
    for name, count in published.durable.items():
        if counts[name] != count:
            yield f"{name}: the log counts {counts[name]}, not {count}"
    for name, count in published.begun.items() - published.durable.items():
        if counts[name] not in (0, count):
            yield f"{name}: the log counts {counts[name]}, not 0 or {count}"


def _audit(model: Model, stored: Stored, ends: Mapping[int, int]) -> Iterable[str]:
    """Check that batches have no gap or overlap, and that each adds exactly its records."""
    reached: dict[int, int] = {}
    by_transaction: dict[str, list[OffsetMove]] = defaultdict(list)
    for move in stored.moves:
        before, after = move.before, move.after
        if before != reached.get(move.partition):
            yield f"{move} begins at {before}, where no batch ended"
        if after is None:
            yield f"{move} deletes the stored offset"
            continue
        if before is not None and after <= before:
            yield f"{move} goes back"
        reached[move.partition] = after
        by_transaction[move.transaction].append(move)
    for partition, end in ends.items():
        if reached.get(partition) != end:
            yield f"partition {partition}: the last batch ends at {reached.get(partition)}"
    amounts: dict[int, dict[int, int]] = defaultdict(dict)
    for (partition, offset), count in model.counted.items():
        amounts[partition][offset] = count
    for transaction, moves in by_transaction.items():
        wanted = sum(
            amounts[move.partition].get(offset, 0)
            for move in moves
            if move.before is not None and move.after is not None
            for offset in range(move.before, move.after)
        )
        if (found := stored.growth.get(transaction, 0)) != wanted:
            yield f"transaction {transaction} of {moves} added {found}, not {wanted}"
    for transaction in (stored.growth.keys() | stored.touched) - by_transaction.keys():
        yield f"transaction {transaction} wrote rows and moved no offset"


def _limited(kind: str, differences: Iterable[str]) -> Iterable[str]:
    found = list(differences)
    yield from (f"{kind}: {difference[:_TEXT]}" for difference in found[:_SHOWN])
    if len(found) > _SHOWN:
        yield f"{kind}: {len(found) - _SHOWN} more"
