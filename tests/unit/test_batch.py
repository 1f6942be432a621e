"""Projection of batches onto events, duplicates and dead letters."""

from collections.abc import Sequence

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from execution_events import wire
from execution_events.events import Occurrence
from execution_events.projection import batch
from execution_events.projection.batch import DeadLetter, Projection, Rate, SourceKey, project
from execution_events.projection.fold import FoldedEvent, Identity, merge
from execution_events.wire import Record
from tests.support import golden, strategies
from tests.support.golden import KafkaRecord

SEED = [case.record for case in golden.load("seed.json")]
GOOD = SEED[0]
POISON = GOOD._replace(value=b"{")
SETTINGS = settings(max_examples=150, deadline=None)


def sent(record: KafkaRecord, sequence: int, source: str = "s", partition: int = 0) -> KafkaRecord:
    headers = tuple(wire.encode_headers(source, sequence))
    return record._replace(headers=headers, partition=partition)


def project_all(
    records: Sequence[Record], watermarks: dict[SourceKey, int] | None = None
) -> Projection:
    return project(map(batch.read, records), watermarks or {})


def count(projection: Projection) -> int:
    return sum(event.count for event in projection.events)


def test_an_empty_batch_adds_nothing() -> None:
    assert project_all([]) == Projection([], {}, [], {}, {}, duplicates=0, gaps=0, without_key=0)


def test_a_record_without_headers_counts_each_time() -> None:
    projection = project_all([GOOD, GOOD])
    assert count(projection) == 2
    assert projection.watermarks == {}
    assert projection.duplicates == 0


def test_rates_are_of_each_partitions_records_and_of_the_occurrences_that_count() -> None:
    records = [
        sent(GOOD, 1),
        sent(GOOD, 1),
        sent(POISON, 2),
        sent(POISON, 2),
        sent(GOOD, 1, partition=2),
        sent(GOOD, 3)._replace(value=(GOOD.value or b"").replace(b'"count":1', b'"count":7')),
    ]
    assert project_all(records).rates == {0: Rate(5, 8, 1), 2: Rate(1, 1, 0)}


def test_a_copy_in_the_same_batch_is_a_duplicate() -> None:
    projection = project_all([sent(GOOD, 1), sent(GOOD, 2), sent(GOOD, 1), sent(GOOD, 2)])
    assert count(projection) == 2
    assert projection.duplicates == 2
    assert projection.gaps == 0
    assert projection.watermarks == {(0, "s"): 2}


@pytest.mark.parametrize("sequence", [0, 6, 7])
def test_a_copy_in_a_later_batch_is_a_duplicate(sequence: int) -> None:
    projection = project_all([sent(GOOD, sequence)], {(0, "s"): 7})
    assert projection == Projection([], {}, [], {}, {0: Rate(1)}, 1, gaps=0, without_key=0)


def test_a_refused_record_moves_the_watermark_so_that_its_copy_is_a_duplicate() -> None:
    projection = project_all([sent(POISON, 1), sent(POISON, 1), sent(GOOD, 2)])
    assert [letter.record for letter in projection.dead_letters] == [sent(POISON, 1)]
    assert projection.watermarks == {(0, "s"): 2}
    assert (projection.duplicates, projection.gaps) == (1, 0)
    later = project_all([sent(POISON, 2)], projection.watermarks)
    assert later == Projection([], {}, [], {}, {0: Rate(1)}, 1, gaps=0, without_key=0)


@pytest.mark.parametrize(
    ("source", "partition"), [("other", 0), ("s", 1)], ids=["source", "partition"]
)
def test_each_source_and_partition_has_its_own_watermark(source: str, partition: int) -> None:
    projection = project_all([sent(GOOD, 1), sent(GOOD, 1, source, partition)])
    assert count(projection) == 2
    assert projection.watermarks == {(0, "s"): 1, (partition, source): 1}


@pytest.mark.parametrize(
    ("watermarks", "sequences", "gaps"),
    [({}, [5, 6, 7], 0), ({}, [5, 7, 8, 11], 2), ({(0, "s"): 4}, [5], 0), ({(0, "s"): 3}, [5], 1)],
)
def test_gaps_are_counted(
    watermarks: dict[SourceKey, int], sequences: list[int], gaps: int
) -> None:
    projection = project_all([sent(GOOD, sequence) for sequence in sequences], watermarks)
    assert projection.gaps == gaps
    assert count(projection) == len(sequences)


def test_stored_records_without_a_key_are_counted() -> None:
    keyless = GOOD._replace(key=None)
    projection = project_all([GOOD, keyless, sent(keyless, 1), sent(keyless, 1)])
    assert projection.without_key == 2


def test_a_refused_record_does_not_affect_the_others() -> None:
    projection = project_all([SEED[0], POISON, SEED[1], POISON._replace(value=None), SEED[2]])
    assert [event.count for event in projection.events] == [1, 1, 1]
    assert [(letter.record.value, letter.refusal.reason) for letter in projection.dead_letters] == [
        (b"{", wire.NOT_JSON),
        (None, wire.NO_VALUE),
    ]


def test_one_name_in_two_executions_is_two_events() -> None:
    assert GOOD.value is not None
    other = GOOD._replace(key=b"other", value=GOOD.value.replace(GOOD.key or b"", b"other"))
    assert [event.latest.execution_id for event in project_all([other, GOOD, other]).events] == [
        "other",
        "e19d3faf-9f04-9685-e5c0-fbe8d40b96cd",
    ]


@given(strategies.logs())
@SETTINGS
def test_events_are_in_the_order_of_their_first_records(log: list[KafkaRecord]) -> None:
    outcomes = [batch.read(record).outcome for record in model(log)[0]]
    identities = [
        (outcome.execution_id, outcome.namespace, outcome.name)
        for outcome in outcomes
        if isinstance(outcome, Occurrence)
    ]
    assert [e.identity for e in project_all(log).events] == list(dict.fromkeys(identities))


def model(log: list[KafkaRecord]) -> tuple[list[KafkaRecord], dict[SourceKey, int], int, int]:
    """Return the records of a log that are applied, the watermarks, duplicates and gaps.

    A record is a duplicate if an earlier record of its source and partition, whatever its outcome,
    has the same or a greater sequence.
    """
    applied, gaps = [], 0
    seen: dict[SourceKey, list[int]] = {}
    for record in log:
        if record.headers:
            headers = dict(record.headers)
            source, sequence = headers["ce_source"], headers["ce_sequence"]
            assert source
            assert sequence
            before = seen.setdefault((record.partition, source.decode()), [])
            current = int(sequence)
            duplicate = any(current <= earlier for earlier in before)
            gaps += bool(before) and not duplicate and current - 1 != max(before)
            before.append(current)
            if duplicate:
                continue
        applied.append(record)
    watermarks = {key: max(sequences) for key, sequences in seen.items()}
    return applied, watermarks, len(log) - len(applied), gaps


@given(strategies.logs())
@SETTINGS
def test_project_agrees_with_the_model(log: list[KafkaRecord]) -> None:
    applied, watermarks, duplicates, gaps = model(log)
    projection = project_all(log)
    outcomes = [batch.read(record).outcome for record in applied]
    counted = [outcome.count for outcome in outcomes if isinstance(outcome, Occurrence)]
    event(f"duplicates {duplicates > 0}, gaps {gaps > 0}, refused {len(counted) < len(applied)}")
    assert projection.watermarks == watermarks
    assert (projection.duplicates, projection.gaps) == (duplicates, gaps)
    assert count(projection) == sum(counted)
    assert [letter.record for letter in projection.dead_letters] == [
        record for record in applied if record.value in (None, b"poison")
    ]
    assert projection.without_key == sum(
        record.key is None and record.value not in (None, b"poison") for record in applied
    )


@given(st.data(), strategies.logs())
@SETTINGS
def test_any_split_into_batches_stores_the_same(
    data: st.DataObject, log: list[KafkaRecord]
) -> None:
    stored: dict[Identity, FoldedEvent] = {}
    letters: list[DeadLetter] = []
    watermarks: dict[SourceKey, int] = {}
    duplicates = gaps = without_key = 0
    for part in data.draw(strategies.splits(len(log))):
        projection = project_all(log[part], watermarks)
        for new in projection.events:
            old = stored.get(new.identity)
            stored[new.identity] = merge(old, new) if old else new
        letters += projection.dead_letters
        watermarks |= projection.watermarks
        duplicates += projection.duplicates
        gaps += projection.gaps
        without_key += projection.without_key
    whole = project_all(log)
    assert list(stored.values()) == whole.events
    assert letters == whole.dead_letters
    assert watermarks == whole.watermarks
    assert (duplicates, gaps, without_key) == (whole.duplicates, whole.gaps, whole.without_key)
