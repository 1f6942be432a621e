"""The producer's end, without a broker."""

import asyncio
from typing import Any

from aiokafka import TopicPartition

from execution_events.kafka.producer import Producer


async def test_a_batch_that_waits_to_be_sent_again_fails_silently() -> None:
    """aiokafka removes it from the batches in flight twice, the second time in a callback."""
    contexts: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    try:
        producer = Producer(resend_ms=60_000, acks="all", enable_idempotence=True)
        producer._txn_manager.set_pid_and_epoch(1, 0)
        batches, partition = producer._message_accumulator, TopicPartition("events", 0)
        builder = producer.create_batch()
        builder.append(key=b"key", value=b"value", timestamp=0)
        delivered = await batches.add_batch(builder, partition, 1)
        batches.reenqueue(batches._pop_batch(partition))
        await producer.end()
        await asyncio.wait([delivered])
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert contexts == []
    assert type(delivered.exception()).__name__ == "ProducerClosed"
