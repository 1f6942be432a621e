"""The acceptance of a log that replaced the stored one."""

from collections.abc import AsyncIterator
from typing import Literal, NamedTuple

from execution_events.consumer.log_check import LogState, log_mismatch, read_log
from execution_events.errors import RetryableError
from execution_events.kafka.codecs import Decoders
from execution_events.kafka.topic import check_topic
from execution_events.settings import Settings
from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.progress import OffsetMove


class ReplacedLog(NamedTuple):
    """A partition whose log is not the stored one.

    `difference` says how it differs. The log holds the offsets from `begin` to before `end`; once
    accepted, the partition continues at `offset`.
    """

    partition: int
    difference: str
    begin: int
    end: int
    offset: int


class UnreadLog(NamedTuple):
    """A partition whose log cannot be compared, and the cause."""

    partition: int
    error: RetryableError


async def accept_logs(
    settings: Settings, start: Literal["beginning", "end"], *, dry_run: bool
) -> AsyncIterator[ReplacedLog | UnreadLog]:
    """Yield each partition whose log differs; accept the log first unless `dry_run`.

    An accepted partition continues at the beginning or the end of its log. Consumers may be
    running; raise `FencedError` when one of them commits to the partition at the same time.
    """
    partitions = await check_topic(settings.kafka)
    async with BatchWriter(settings.database.require_url(), settings.kafka.topic) as writer:
        stored = await writer.stored_positions(partitions)
        decoders = Decoders(settings.kafka.batch_limit).install()
        states: dict[int, LogState | RetryableError] = {}
        await read_log(settings.kafka, decoders, stored, {}, states.__setitem__)
        for partition, position in sorted(stored.items()):
            state = states[partition]
            if isinstance(state, RetryableError):
                yield UnreadLog(partition, state)
                continue
            reason = log_mismatch(position, state)
            if reason is None:
                continue
            offset = state.begin if start == "beginning" else state.end
            if not dry_run:
                move = OffsetMove(position.next_offset, offset, position.epoch)
                await writer.accept_log(partition, move, state.cluster_id)
            yield ReplacedLog(partition, reason, state.begin, state.end, offset)
