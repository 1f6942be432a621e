"""aiokafka's consumer, with an end where it waits for ever, and cheaper records.

The one place of the consumer that knows aiokafka from the inside: 0.14, which the dependency's
bounds demand.
"""

from collections import OrderedDict
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import KafkaError

from execution_events.wire import Headers


class KafkaRecord(msgspec.Struct, frozen=True, gc=False):
    """A `wire.Record`. aiokafka's own, a frozen dataclass, takes three times as long to make."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Client(AIOKafkaConsumer):  # type: ignore[misc]
    """A consumer that raises once it has stopped to fetch."""

    async def start(self) -> None:
        """As aiokafka's."""
        await super().start()
        self._fetcher._records = _Fetches()

    async def getmany(
        self, *partitions: TopicPartition, **options: Any
    ) -> dict[TopicPartition, list[KafkaRecord]]:
        """As aiokafka's; `KafkaError` where the task that fetches has ended.

        aiokafka logs the error that ended it, and gives no record any more.
        """
        if self._fetcher.error_future.done():
            raise KafkaError("the task that fetches has ended")
        records: dict[TopicPartition, list[KafkaRecord]] = await super().getmany(
            *partitions, **options
        )
        return records


class _Fetches(OrderedDict[TopicPartition, Any]):
    """What was fetched of each partition: records, or an error."""

    def __setitem__(self, partition: TopicPartition, fetched: Any) -> None:
        if isinstance(fetched, FetchResult):
            fetched._partition_records._consumer_record = _record
        super().__setitem__(partition, fetched)


def _record(partition: TopicPartition, record: Any) -> KafkaRecord:
    return KafkaRecord(
        partition.partition,
        record.offset,
        record.timestamp,
        record.key,
        record.value,
        record.headers,
    )
