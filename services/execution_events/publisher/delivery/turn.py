"""A turn of a spool: what its sender has to tell, and what it gets to send. No asyncio."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import NamedTuple

from execution_events.errors import RetryableError, SpoolFullError
from execution_events.publisher.record import NewRecord
from execution_events.publisher.spool.spool import Spool, SpooledRecord


class Changes(NamedTuple):
    """Fates of records in flight, and the reasons why others wait, by partition."""

    acknowledged: list[int]
    refused: list[tuple[int, str]]
    expired: list[int]
    returned: dict[int, list[int]]
    reasons: dict[int, str]


def exchange(
    spool: Spool,
    new: list[NewRecord],
    changes: Changes,
    room: int,
    partition_of: Callable[[bytes], int] | None,
    passed: frozenset[int],
    accept_partitions: int,
) -> tuple[list[SpooledRecord], SpoolFullError | None]:
    """One turn. A full spool stores nothing new, and still gives what it has."""
    for sequence, detail in changes.refused:
        spool.refuse(sequence, detail)
    spool.hold(changes.expired)
    if changes.returned:
        spool.take_back(chain.from_iterable(changes.returned.values()))
    # They are worth less than what follows, which may make room; the next turn has them again.
    with suppress(RetryableError):
        spool.note_reasons(changes.reasons)
    if accept_partitions:
        spool.accept_partitions(accept_partitions)
    give = partial(spool.exchange, room=max(0, room), partition_of=partition_of, passed=passed)
    try:
        return give(new, changes.acknowledged), None
    except SpoolFullError as error:
        return give((), changes.acknowledged), error
