"""Batches are found on disk, and a flipped bit breaks their CRC."""

from pathlib import Path

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from tests.faults.segments import StoredBatch, batches, flip


def batch(base: int, records: int) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=10_000,
    )
    for number in range(records):
        builder.append(number, 1_767_225_600_000, b"key", b"value", [])
    data = bytearray(builder.build())
    # The broker assigns the offset, which the CRC does not cover.
    data[:8] = base.to_bytes(8)
    return bytes(data)


def whole(segment: Path, stored: StoredBatch) -> bool:
    data = segment.read_bytes()[stored.position : stored.position + stored.size]
    return bool(DefaultRecordBatch(data).validate_crc())


def test_every_complete_batch_is_found(tmp_path: Path) -> None:
    segment = tmp_path / "segment.log"
    first, second, third = batch(0, 3), batch(3, 1), batch(4, 2)
    segment.write_bytes(first + second + third[:-1])

    assert list(batches(segment)) == [
        StoredBatch(0, 2, 0, len(first)),
        StoredBatch(3, 3, len(first), len(second)),
    ]


def test_an_empty_segment_has_no_batches(tmp_path: Path) -> None:
    segment = tmp_path / "segment.log"
    segment.write_bytes(b"")
    assert list(batches(segment)) == []


def test_a_flipped_batch_is_corrupt_until_it_is_flipped_back(tmp_path: Path) -> None:
    segment = tmp_path / "segment.log"
    before = batch(0, 3) + batch(3, 2)
    segment.write_bytes(before)
    one, other = batches(segment)

    flip(segment, other)
    assert whole(segment, one)
    assert not whole(segment, other)
    assert list(batches(segment)) == [one, other]

    flip(segment, other)
    assert segment.read_bytes() == before
