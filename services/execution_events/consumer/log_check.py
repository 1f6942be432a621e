"""Comparison of a partition's log in Kafka with its stored position."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from execution_events.errors import RetryableError
from execution_events.kafka.brokers import EARLIEST, LATEST, Address, Brokers
from execution_events.kafka.codecs import Decoders
from execution_events.kafka.consumer import PartitionedConsumer, PartitionError
from execution_events.kafka.errors import error_text, kafka_error, no_leader_error
from execution_events.projection.fingerprint import Fingerprint, fingerprint
from execution_events.settings import KafkaSettings
from execution_events.store.write.progress import StoredPosition

_READ_TIMEOUT = 8
"""Seconds to read the needed records of one broker again."""


class LogState(NamedTuple):
    """One partition's log: its cluster, its first offset, and the offset after its last stable
    record.

    `last` is the record now found at the offset of the last stored one, or None. `unreadable` is
    the error of a needed record that cannot be read.
    """

    cluster_id: str
    begin: int
    end: int
    last: Fingerprint | None
    unreadable: str | None = None


Report = Callable[[int, LogState | RetryableError], None]
"""Receives a partition and the state of its log, or the error in its place."""


def log_mismatch(stored: StoredPosition, log: LogState) -> str | None:
    """Return the reason why `log` is not the stored one; None if it is.

    It still is if retention has removed the last stored record but none after it.
    """
    if stored.cluster_id not in (None, log.cluster_id):
        return f"the cluster is {log.cluster_id}, not {stored.cluster_id}"
    if stored.next_offset < log.begin:
        lost = log.begin - stored.next_offset
        return f"the log begins at {log.begin}: {lost} offsets were never stored"
    if stored.next_offset > log.end:
        return f"the log ends at {log.end}, before the stored offset {stored.next_offset}"
    if log.unreadable is not None:
        return log.unreadable
    if stored.last is not None and stored.last.offset >= log.begin and log.last != stored.last:
        return f"the record at offset {stored.last.offset} is not the one that was stored"
    return None


async def read_log(
    settings: KafkaSettings,
    decoders: Decoders,
    stored: Mapping[int, StoredPosition | None],
    failed_at: Mapping[int, int],
    report: Report,
) -> None:
    """Report the log's state of each partition in `stored`, as soon as it is known.

    `failed_at` holds offsets that could not be fetched or read: they are tried again. Brokers are
    queried concurrently, so a silent one delays only the partitions it leads. Raises
    `RetryableError` if no broker responds.
    """
    async with Brokers(settings, "execution-events-log") as brokers:
        topology = await brokers.topology()
        by_leader, leaderless = topology.by_leader(stored)
        for number in leaderless:
            report(number, no_leader_error(settings.bootstrap_servers, number))
        offsets_by_number = {
            number: offsets
            for number, position in stored.items()
            if (offsets := _offsets_to_read(number, position, failed_at))
        }
        async with asyncio.TaskGroup() as group:
            for leader, numbers in by_leader.items():
                reader = _LogReader(settings, decoders, brokers, leader)
                group.create_task(
                    reader.read(topology.cluster_id, numbers, offsets_by_number, report)
                )


def _offsets_to_read(
    number: int, position: StoredPosition | None, failed_at: Mapping[int, int]
) -> list[int]:
    if position is None:
        return []
    offsets = [] if position.last is None else [position.last.offset]
    if failed_at.get(number) == position.next_offset:
        offsets.append(position.next_offset)
    return offsets


class _LogReader:
    """A reader of the logs that one broker leads."""

    def __init__(
        self, settings: KafkaSettings, decoders: Decoders, brokers: Brokers, leader: Address
    ) -> None:
        self._settings = settings
        self._decoders = decoders
        self._brokers = brokers
        self._leader = leader

    async def read(
        self,
        cluster_id: str,
        numbers: Iterable[int],
        offsets_by_number: Mapping[int, list[int]],
        report: Report,
    ) -> None:
        """Report the state of each of `numbers`, once the records at its offsets are read."""
        numbers = list(numbers)
        try:
            begins, ends = await asyncio.gather(
                self._brokers.offsets(self._leader, numbers, EARLIEST),
                self._brokers.offsets(self._leader, numbers, LATEST),
            )
        except RetryableError as error:
            for number in numbers:
                report(number, error)
            return
        incomplete: dict[int, tuple[LogState, list[int]]] = {}
        for number in numbers:
            begin, end = begins[number], ends[number]
            if isinstance(begin, RetryableError):
                report(number, begin)
            elif isinstance(end, RetryableError):
                report(number, end)
            else:
                state = LogState(cluster_id, begin, end, None)
                # There is no record at the end, but a fetch there may still be refused.
                offsets = [at for at in offsets_by_number.get(number, ()) if begin <= at <= end]
                if offsets:
                    incomplete[number] = state, offsets
                else:
                    report(number, state)
        if incomplete:
            await self._read_records(incomplete, report)

    async def _read_records(
        self, incomplete: Mapping[int, tuple[LogState, list[int]]], report: Report
    ) -> None:
        """Complete the states with the first record at or after each of their offsets."""
        left = {TopicPartition(self._settings.topic, n): entry for n, entry in incomplete.items()}
        failure: BaseException | None = None
        try:
            async with asyncio.timeout(_READ_TIMEOUT), self._client() as client:
                client.assign(list(left))
                for partition, (_, offsets) in left.items():
                    client.seek(partition, offsets[0])
                while left:
                    fetched = await client.getmany(*left, timeout_ms=500, max_records=1)
                    for partition, (state, [_, *further]) in list(left.items()):
                        records = fetched.get(partition)
                        error = client.partition_errors.get(partition)
                        if records:
                            state = state._replace(last=state.last or fingerprint(records[0]))
                        elif error is not None:
                            del left[partition]
                            report(partition.partition, self._failed_state(state, error))
                            continue
                        elif await client.position(partition) < state.end:
                            continue
                        # Otherwise only control records follow, up to the end.
                        if further:
                            left[partition] = state, further
                            client.seek(partition, further[0])
                        else:
                            del left[partition]
                            report(partition.partition, state)
        except (KafkaError, OSError, TimeoutError) as error:
            failure = error
        for partition, (_, [offset, *_]) in left.items():
            text = "no answer" if failure is None else error_text(failure)
            report(
                partition.partition,
                kafka_error(
                    self._leader,
                    f"partition {partition.partition} cannot be read at offset {offset}: {text}",
                    type(failure).__name__,
                ),
            )

    def _failed_state(self, state: LogState, error: PartitionError) -> LogState | RetryableError:
        if error.offset is None:
            return kafka_error(self._leader, error.text, error.cause)
        return state._replace(unreadable=error.text)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[PartitionedConsumer]:
        """Open a client of this broker alone, without a group."""
        client = PartitionedConsumer(
            self._settings,
            self._decoders,
            bootstrap_servers=str(self._leader),
            client_id="execution-events-log",
            # The first metadata request goes out before the topic is known, and is repeated.
            retry_backoff_ms=20,
        )
        await client.start()
        try:
            yield client
        finally:
            await client.stop()
