"""The ids of a watch: where its client stands, so that the next watch goes on from there."""

import base64
import hashlib

import msgspec

from execution_events.reader.query import Query
from execution_events.store.read.changes import Revisions

_VERSION = b"\1"
_DIGEST_BYTES = 12
_decoder = msgspec.msgpack.Decoder(dict[str, int])


def resumption_id(query: Query, position: Revisions) -> str:
    """The id of who has seen all of a query's events up to `position`."""
    # No secret: a forged position changes no more than which changes are sent.
    content = msgspec.msgpack.encode(dict(position))
    return base64.urlsafe_b64encode(_VERSION + _digest(query, content) + content).decode()


def position_of(query: Query, id_: str) -> Revisions | None:
    """The position that an id stands for; None for all that is no id of this query."""
    try:
        decoded = base64.b64decode(id_, b"-_", validate=True)
        content = decoded[1 + _DIGEST_BYTES :]
        position = _decoder.decode(content)
    except (ValueError, msgspec.MsgspecError):
        return None
    if decoded != _VERSION + _digest(query, content) + content:
        return None
    # More than this no revision is, and the database takes no more.
    return position if all(0 < revision < 2**63 for revision in position.values()) else None


def _digest(query: Query, content: bytes) -> bytes:
    digest = hashlib.blake2b(query.digest, digest_size=_DIGEST_BYTES, person=b"watch")
    digest.update(query.execution_id.encode() + b"\0" + content)
    return digest.digest()
