"""Record batches that no client library makes."""

import asyncio
from collections.abc import Iterable

from aiokafka import TopicPartition
from aiokafka.errors import NotLeaderForPartitionError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from execution_events.settings import Settings
from tests.support.consumers import DEADLINE
from tests.support.occurrences import producer

ZSTD = 4


async def produce_batch(
    settings: Settings,
    partition: int,
    values: Iterable[bytes],
    headers: tuple[tuple[str, bytes], ...] = (),
    codec: int = 0,
) -> None:
    """Append one batch of records without a key to a partition.

    A compressed batch may expand to any size: the broker checks its compressed size.
    """
    builder = _DefaultRecordBatchBuilderPy(
        magic=2,
        compression_type=codec,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=2**30,
    )
    for number, value in enumerate(values):
        builder.append(number, timestamp=None, key=None, value=value, headers=list(headers))
    batch = bytes(builder.build())
    request = ProduceRequest(None, -1, 10_000, [(settings.kafka.topic, [(partition, batch)])])
    async with producer(settings) as client:
        await client.partitions_for(settings.kafka.topic)
        leader = client.client.cluster.leader_for_partition(
            TopicPartition(settings.kafka.topic, partition)
        )
        async with asyncio.timeout(DEADLINE):
            while True:
                response = await client.client.send(leader, request)
                [(_, [(_, code, *_)])] = response.topics
                if for_code(code) is not NotLeaderForPartitionError:
                    break
                # The topic was made a moment ago.
                await asyncio.sleep(0.05)
    assert code == 0, f"the broker refused the batch: {for_code(code).__name__}"
