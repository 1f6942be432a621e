"""Audit of a topic without the product's code: plain bytes and JSON."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

_TIMEOUT = 30
"""Seconds until the next record."""


class LogRecord(NamedTuple):
    """Identity of a record, from its headers and its value."""

    partition: int
    source: bytes
    sequence: int
    execution: str
    name: str


@dataclass
class Audit:
    """Counts of a log. A copy has the source, partition and sequence of an earlier record."""

    records: int = 0
    copies: int = 0
    misplaced: int = 0
    """First copies whose sequence is not above all earlier ones of source and partition."""
    disordered: int = 0
    """First copies whose name is not above all earlier ones of their execution, although they were
    published one after another."""
    names: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, records: Iterable[LogRecord]) -> "Audit":
        """Audit records that are in the order of each partition."""
        audit = cls()
        seen: dict[tuple[int, bytes], set[int]] = defaultdict(set)
        greatest: dict[tuple[int, bytes], int] = {}
        latest: dict[str, str] = {}
        for partition, source, sequence, execution, name in records:
            audit.records += 1
            if sequence in seen[partition, source]:
                audit.copies += 1
                continue
            seen[partition, source].add(sequence)
            audit.misplaced += sequence <= greatest.get((partition, source), -1)
            greatest[partition, source] = sequence
            audit.disordered += name <= latest.get(execution, "")
            latest[execution] = name
            audit.names.add(name)
        return audit


def read(bootstrap_servers: str, topic: str, partitions: int) -> Iterator[LogRecord]:
    """Yield every record of the topic up to its current end, one partition after another."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "execution-events-benchmarks",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
        }
    )
    try:
        for partition in range(partitions):
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, partition))
            consumer.assign([TopicPartition(topic, partition, first)])
            for _ in range(first, end):
                message = consumer.poll(_TIMEOUT)
                if message is None:
                    raise RuntimeError(f"partition {partition}: no record for {_TIMEOUT} s")
                if message.error() is not None:
                    raise KafkaException(message.error())
                yield _record(partition, message.headers(), message.value())
    finally:
        consumer.close()


def _record(partition: int, headers: list[tuple[str, bytes]], value: bytes) -> LogRecord:
    header = dict(headers)
    content = json.loads(value)
    return LogRecord(
        partition,
        header["ce_source"],
        int(header["ce_sequence"]),
        content["executionId"],
        content["metadata"]["name"],
    )
