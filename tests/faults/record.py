"""The record type shared by all parts of the harness."""

from typing import NamedTuple

Headers = tuple[tuple[str, bytes | None], ...]
LogPosition = tuple[int, int]
"""(partition, offset)"""


class LogRecord(NamedTuple):
    """A record of the log; `timestamp` is in milliseconds since the Unix epoch."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def position(self) -> LogPosition:
        return self.partition, self.offset
