"""Kafka's log of each partition as it is now, against what of it is stored."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from execution_events.errors import RetryableError
from execution_events.kafka.brokers import EARLIEST, LATEST, Address, Brokers
from execution_events.kafka.codecs import Decoders
from execution_events.kafka.consumer import Client, Trouble, describe
from execution_events.projection.fingerprint import Fingerprint, fingerprint
from execution_events.settings import KafkaSettings
from execution_events.store.write.progress import StoredPosition

_READ_TIMEOUT = 8
"""Seconds to read records of one broker again."""


class LogState(NamedTuple):
    """One partition's log: its cluster, its first offset, and the offset after its last stable
    record.

    `last` is the record that it has now where the last stored one was; None where there is none.
    `unreadable` says why a record that had to be read cannot be.
    """

    cluster_id: str
    begin: int
    end: int
    last: Fingerprint | None
    unreadable: str | None = None


Report = Callable[[int, LogState | RetryableError], None]
"""Receives the state of a partition's log, or the error that hides it."""


def difference(stored: StoredPosition, log: LogState) -> str | None:
    """Why `log` is not the one that is stored up to `stored`; None where it is.

    A log whose retention removed the last stored record, but none after it, still is.
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
        return f"the log has another record at offset {stored.last.offset} than the stored one"
    return None


async def read_log(
    settings: KafkaSettings,
    decoders: Decoders,
    stored: Mapping[int, StoredPosition | None],
    failed_at: Mapping[int, int],
    report: Report,
) -> None:
    """Report the state of the log of each partition in `stored`, each as soon as it is known.

    `failed_at` holds offsets that could not be fetched or read: they are tried again. Brokers are
    asked at the same time, and one that does not answer delays the partitions that it leads alone.
    Raises `RetryableError` where no broker answers.
    """
    async with Brokers(settings, "execution-events-log") as brokers:
        topology = await brokers.topology()
        by_leader: dict[Address, list[int]] = defaultdict(list)
        for number in stored:
            if (leader := topology.leaders.get(number)) is None:
                report(number, no_leader(settings, number))
            else:
                by_leader[leader].append(number)
        reads = {
            number: offsets
            for number, position in stored.items()
            if (offsets := _offsets_to_read(number, position, failed_at))
        }
        async with asyncio.TaskGroup() as group:
            for leader, numbers in by_leader.items():
                reader = _Reader(settings, decoders, brokers, leader)
                group.create_task(reader.read(topology.cluster_id, numbers, reads, report))


def no_leader(settings: KafkaSettings, number: int) -> RetryableError:
    """The error of a partition that no broker leads."""
    return RetryableError(
        f"Kafka at {settings.bootstrap_servers}: partition {number} has no leader",
        "LeaderNotAvailableError",
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


class _Reader:
    """Reads the logs that one broker leads."""

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
        reads: Mapping[int, list[int]],
        report: Report,
    ) -> None:
        """Report the state of each of `numbers`; of some, records are read at offsets first."""
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
        later: dict[int, tuple[LogState, list[int]]] = {}
        for number in numbers:
            begin, end = begins[number], ends[number]
            if isinstance(begin, RetryableError):
                report(number, begin)
            elif isinstance(end, RetryableError):
                report(number, end)
            else:
                state = LogState(cluster_id, begin, end, None)
                # At the end there is no record, and a fetch may be refused all the same.
                offsets = [at for at in reads.get(number, ()) if begin <= at <= end]
                if offsets:
                    later[number] = state, offsets
                else:
                    report(number, state)
        if later:
            await self._read_records(later, report)

    async def _read_records(
        self, wanted: Mapping[int, tuple[LogState, list[int]]], report: Report
    ) -> None:
        """Complete the states with the first record at or after each of their offsets."""
        left = {TopicPartition(self._settings.topic, n): entry for n, entry in wanted.items()}
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
                        trouble = client.troubles.get(partition)
                        if records:
                            state = state._replace(last=state.last or fingerprint(records[0]))
                        elif trouble is not None:
                            del left[partition]
                            report(partition.partition, self._troubled(state, trouble))
                            continue
                        elif await client.position(partition) < state.end:
                            continue
                        # Else nothing but control records up to the end: there is none to find.
                        if further:
                            left[partition] = state, further
                            client.seek(partition, further[0])
                        else:
                            del left[partition]
                            report(partition.partition, state)
        except (KafkaError, OSError, TimeoutError) as error:
            failure = error
        for partition, (_, [offset, *_]) in left.items():
            if failure is None or isinstance(failure, TimeoutError):
                cause = "no answer"
            else:
                cause = describe(failure)
            report(
                partition.partition,
                RetryableError(
                    f"Kafka at {self._leader}: partition {partition.partition} cannot be read at "
                    f"offset {offset}: {cause}",
                    type(failure).__name__,
                ),
            )

    def _troubled(self, state: LogState, trouble: Trouble) -> LogState | RetryableError:
        if trouble.offset is None:
            return RetryableError(f"Kafka at {self._leader}: {trouble.text}", trouble.cause)
        return state._replace(unreadable=trouble.text)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        """A client outside of the group, of this broker alone."""
        client = Client(
            self._settings,
            self._decoders,
            bootstrap_servers=str(self._leader),
            client_id="execution-events-log",
            # Its first question is asked before it knows the topic, and then once more.
            retry_backoff_ms=20,
        )
        await client.start()
        try:
            yield client
        finally:
            await client.stop()
