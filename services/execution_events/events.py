"""The event and its bounds.

The bounds are the contract of design section 2; `schemas/event.schema.json` says the same to
producers in other languages, and a test holds the two together.
"""

import re
from datetime import UTC, datetime

import msgspec

EXECUTION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
NAME_MAX_BYTES = 253
TEXT_MAX_CHARACTERS = 256
MESSAGE_MAX_BYTES = 16 * 1024
RECORD_COUNT_MAX = 2**31 - 1
"""The most occurrences that one record may carry."""
COUNT_MAX = 2**53 - 1
"""Where sums stop: the greatest integer that every JSON reader holds exactly."""
TIMESTAMP_MIN = datetime(1970, 1, 1, tzinfo=UTC)
TIMESTAMP_MAX = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)

NORMAL = "Normal"
WARNING = "Warning"


class Occurrence(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`count` occurrences of one event, as one record carries them.

    The event's identity is (execution_id, namespace, name). Timestamps are aware, in UTC, to the
    microsecond. An `Occurrence` that came from `wire.decode` is within the bounds above.
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
    """The involved object's name by convention: what stands before the last dot of the event's."""
    return name.rpartition(".")[0] or name


def event_name(object_name: str, first_report: int) -> str:
    """The name of an event first reported at `first_report` nanoseconds since the Unix epoch."""
    return f"{object_name}.{first_report:x}"
