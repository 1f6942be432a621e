"""aiokafka's consumer, with an end where it waits for ever.

The one place of the consumer that knows aiokafka from the inside: 0.14, which the dependency's
bounds demand.
"""

from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError


class Client(AIOKafkaConsumer):  # type: ignore[misc]
    """A consumer that raises once it has stopped to fetch."""

    async def getmany(
        self, *partitions: TopicPartition, **options: Any
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """As aiokafka's; `KafkaError` where the task that fetches has ended.

        aiokafka logs the error that ended it, and gives no record any more.
        """
        if self._fetcher.error_future.done():
            raise KafkaError("the task that fetches has ended")
        records: dict[TopicPartition, list[ConsumerRecord]] = await super().getmany(
            *partitions, **options
        )
        return records
