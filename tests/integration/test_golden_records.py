"""Every golden record has its stated outcome after Kafka, the consumer and PostgreSQL."""

import asyncio
from collections import Counter

from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import consuming, until_stored
from tests.support.golden import records
from tests.support.occurrences import Fetch, producer
from tests.support.topics import CREATE_TIME, make_topic

MILLISECONDS = range(2**62)
"""Timestamps that a producer can send."""


async def test_each_golden_record_has_its_outcome(settings: Settings, fetch: Fetch) -> None:
    golden = [case for case in records() if case.record.timestamp in MILLISECONDS]
    settings = configured(settings, topic=f"{settings.kafka.topic}-golden")
    config = {"max.message.bytes": "4194304", "message.timestamp.after.max.ms": str(2**63 - 1)}
    # A partition for each record, so that none is a duplicate.
    await make_topic(settings, len(golden), CREATE_TIME | config)
    async with producer(settings, max_request_size=4_194_304) as client:
        sent = [
            await client.send(
                settings.kafka.topic,
                key=case.record.key,
                value=case.record.value,
                headers=list(case.record.headers),
                partition=partition,
                timestamp_ms=case.record.timestamp,
            )
            for partition, case in enumerate(golden)
        ]
        await asyncio.gather(*sent)

    async with consuming(settings):
        await until_stored(settings)

    rows = await fetch("SELECT partition, reason FROM dead_letter")
    letters = {row["partition"]: row["reason"] for row in rows}
    outcomes = {case.name: letters.get(partition) for partition, case in enumerate(golden)}
    assert outcomes == {case.name: case.refused for case in golden}
    expected: Counter[tuple[str, str, str]] = Counter()
    for occurrence in (case.occurrence for case in golden if case.occurrence is not None):
        identity = (occurrence.execution_id, occurrence.namespace, occurrence.name)
        expected[identity] += occurrence.count
    rows = await fetch("SELECT execution_id, namespace, name, count FROM event")
    assert {(row[0], row[1], row[2]): row[3] for row in rows} == expected
