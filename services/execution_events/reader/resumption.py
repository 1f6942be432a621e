"""Ids of server-sent events, from which a later watch resumes."""

import base64
import hashlib

import msgspec

from execution_events.reader.query import Query
from execution_events.store.read.changes import Revisions

_VERSION = b"\1"
_DIGEST_BYTES = 12
_decoder = msgspec.msgpack.Decoder(dict[str, int])


def encode_event_id(query: Query, revisions: Revisions) -> str:
    """Return the id for a client that has received every change of `query` up to `revisions`."""
    # Unsigned: a forged id only changes which changes its own client receives.
    content = msgspec.msgpack.encode(dict(revisions))
    return base64.urlsafe_b64encode(_VERSION + _digest(query, content) + content).decode()


def decode_event_id(query: Query, event_id: str) -> Revisions | None:
    """Return the revisions of an id; None for anything but an id of this query."""
    try:
        decoded = base64.b64decode(event_id, b"-_", validate=True)
        content = decoded[1 + _DIGEST_BYTES :]
        revisions = _decoder.decode(content)
    except (ValueError, msgspec.MsgspecError):
        return None
    if decoded != _VERSION + _digest(query, content) + content:
        return None
    # PostgreSQL's bigint.
    return revisions if all(0 < revision < 2**63 for revision in revisions.values()) else None


def _digest(query: Query, content: bytes) -> bytes:
    digest = hashlib.blake2b(query.digest, digest_size=_DIGEST_BYTES, person=b"watch")
    digest.update(query.execution_id.encode() + b"\0" + content)
    return digest.digest()
