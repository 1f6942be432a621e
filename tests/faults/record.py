"""A record of the log, as every part of the harness passes it on."""

from typing import NamedTuple

Headers = tuple[tuple[str, bytes | None], ...]
Place = tuple[int, int]
"""(partition, offset)"""


class LogRecord(NamedTuple):
    """One record; `timestamp` is in milliseconds since the Unix epoch."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def place(self) -> Place:
        return self.partition, self.offset
