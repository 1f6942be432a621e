"""What identifies a record of a log, so that another log in its place is noticed."""

from hashlib import blake2b
from typing import NamedTuple

from execution_events.wire import Record

_HASH_BYTES = 16


class Fingerprint(NamedTuple):
    """A record's offset, timestamp in milliseconds, and a hash of its key, value and headers."""

    offset: int
    timestamp: int
    hash: bytes


def fingerprint(record: Record) -> Fingerprint:
    """The fingerprint of `record`; equal for equal records alone, as far as a hash can tell."""
    digest = blake2b(digest_size=_HASH_BYTES)
    for part in (record.key, record.value):
        _add(digest, part)
    for name, value in record.headers:
        _add(digest, name.encode())
        _add(digest, value)
    return Fingerprint(record.offset, record.timestamp, digest.digest())


def _add(digest: blake2b, part: bytes | None) -> None:
    # With its length, so that no two different lists of parts are the same bytes.
    digest.update(b"-" if part is None else b"%d:" % len(part))
    digest.update(part or b"")
