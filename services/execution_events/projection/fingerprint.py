"""The identity of a record in its log, by which a replaced log is detected."""

from hashlib import blake2b
from typing import NamedTuple

from execution_events.wire import Record

_HASH_BYTES = 16


class Fingerprint(NamedTuple):
    """A record's offset, timestamp in milliseconds, and hash of key, value and headers."""

    offset: int
    timestamp: int
    hash: bytes


def fingerprint(record: Record) -> Fingerprint:
    """Return the fingerprint of `record`; different records have different ones (128-bit hash)."""
    digest = blake2b(digest_size=_HASH_BYTES)
    for part in (record.key, record.value):
        _add(digest, part)
    for name, value in record.headers:
        _add(digest, name.encode())
        _add(digest, value)
    return Fingerprint(record.offset, record.timestamp, digest.digest())


def _add(digest: blake2b, part: bytes | None) -> None:
    # The length prefix keeps the concatenation of parts unambiguous.
    digest.update(b"-" if part is None else b"%d:" % len(part))
    digest.update(part or b"")
