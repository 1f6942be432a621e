"""The event and its limits.

The limits are part of the record contract; `schemas/event.schema.json` states them for producers
in other languages, and a test compares the two.
"""

import re
from datetime import UTC, datetime

import msgspec

EXECUTION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
NAME_MAX_BYTES = 253
TEXT_MAX_CHARACTERS = 256
MESSAGE_MAX_BYTES = 16 * 1024
RECORD_COUNT_MAX = 2**31 - 1
"""Maximum count of one record."""
COUNT_MAX = 2**53 - 1
"""Maximum stored count: the greatest integer that every JSON parser represents exactly."""
TIMESTAMP_MIN = datetime(1970, 1, 1, tzinfo=UTC)
TIMESTAMP_MAX = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)

NORMAL = "Normal"
WARNING = "Warning"


class Occurrence(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One record's content: `count` occurrences of one event.

    The event's identity is (execution_id, namespace, name). Timestamps are aware, in UTC, with
    microsecond precision. Results of `wire.decode` are within the limits above.
    """

    execution_id: str
    namespace: str
    name: str
    object_name: str
    object_namespace: str
    reason: str
    message: str
    first_timestamp: datetime
    last_timestamp: datetime
    count: int
    type: str
    elem_type: str
    elem_id: str
    action_name: str


def object_of(name: str) -> str:
    """Return the involved object's name by convention: the event's name up to its last dot."""
    return name.rpartition(".")[0] or name
