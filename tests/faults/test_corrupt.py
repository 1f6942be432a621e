"""The reasons that a consumer must give for a partition that cannot be read."""

import pytest

from tests.faults.rows_corrupt import _names

OFFSETS = range(40, 44)


@pytest.mark.parametrize(
    "reason",
    [
        "partition 1 is halted: the record at offset 40 cannot be read",
        "partition 1 is halted at offset 43: CorruptRecordException, 2 attempts",
    ],
)
def test_a_reason_has_the_partition_and_the_offset(reason: str) -> None:
    assert _names(reason, 1, OFFSETS)


@pytest.mark.parametrize(
    "reason",
    [
        "partition 12 is halted: the record at offset 40 cannot be read",
        "partition 1 is halted: the record at offset 44 cannot be read",
        "partition 1 is halted: the record at offset 4 cannot be read",
        "partition 1 is halted",
        "Kafka: CorruptRecordException: Invalid CRC - partition=1, offset 40",
    ],
)
def test_a_reason_with_another_partition_or_offset_does_not_count(reason: str) -> None:
    assert not _names(reason, 1, OFFSETS)
