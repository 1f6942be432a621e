"""The commit of a spool: its input, its output, and the calls in between. No asyncio."""

from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import NamedTuple

from execution_events.errors import RetryableError, SpoolFullError
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.spool import Spool


class Outcomes(NamedTuple):
    """Outcomes of records in flight, by sequence, and the errors of blocked partitions."""

    acknowledged: list[int]
    refused: list[tuple[int, str]]
    expired: list[int]
    requeued: dict[int, list[int]]
    errors: dict[int, str]


class Fetch(NamedTuple):
    """A request for at most `limit` records, none of `blocked` partitions; see `Spool.commit`.

    Records of partitions from `partitions` on are reassigned first, unless that is 0.
    """

    limit: int = 0
    partition_of: Callable[[bytes], int] | None = None
    blocked: frozenset[int] = frozenset()
    partitions: int = 0


def commit(
    spool: Spool, new: list[PendingRecord], outcomes: Outcomes, fetch: Fetch
) -> tuple[list[PendingRecord], SpoolFullError | None]:
    """Store `new` and `outcomes` in `spool` and return the records that it fetched.

    If the spool is full, nothing of `new` is stored, records are still fetched, and the error is
    returned.
    """
    for sequence, detail in outcomes.refused:
        spool.refuse(sequence, detail)
    spool.hold(outcomes.expired)
    if outcomes.requeued:
        spool.requeue(chain.from_iterable(outcomes.requeued.values()))
    # The rest matters more and may free disk space; the next commit stores the errors again.
    with suppress(RetryableError):
        spool.store_errors(outcomes.errors)
    if fetch.partitions:
        spool.reassign_partitions(fetch.partitions)
    limit, partition_of, blocked, _ = fetch

    def write(records: list[PendingRecord]) -> list[PendingRecord]:
        return spool.commit(
            records, outcomes.acknowledged, limit=limit, partition_of=partition_of, blocked=blocked
        )

    try:
        return write(new), None
    except SpoolFullError as error:
        return write([]), error
