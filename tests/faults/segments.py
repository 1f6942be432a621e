"""The record batches of a log segment on a broker's disk."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_HEAD = 12
"""Bytes of a batch that its length does not include: the base offset and the length itself."""
_PAYLOAD = 61
"""Bytes of a batch before its records; the CRC covers all after the first 21."""
_LAST_OFFSET_DELTA = 23


class StoredBatch(NamedTuple):
    """A batch of records: its first and last offset, and its position and size in the segment."""

    base: int
    last: int
    position: int
    size: int

    @property
    def offsets(self) -> range:
        return range(self.base, self.last + 1)


def batches(segment: Path) -> Iterator[StoredBatch]:
    """Yield the complete batches, in order."""
    data = segment.read_bytes()
    position = 0
    while position + _PAYLOAD <= len(data):
        base = int.from_bytes(data[position : position + 8])
        size = _HEAD + int.from_bytes(data[position + 8 : position + _HEAD])
        delta = position + _LAST_OFFSET_DELTA
        last = base + int.from_bytes(data[delta : delta + 4])
        if size <= _PAYLOAD or position + size > len(data):
            return
        yield StoredBatch(base, last, position, size)
        position += size


def flip(segment: Path, batch: StoredBatch) -> None:
    """Flip one bit of the batch's records; a second call restores it.

    The file is changed in place, so that a running broker serves the new content.
    """
    middle = batch.position + (_PAYLOAD + batch.size) // 2
    with segment.open("r+b", buffering=0) as file:
        [byte] = os.pread(file.fileno(), 1, middle)
        os.pwrite(file.fileno(), bytes([byte ^ 0x01]), middle)
