"""The topic as a reader sees it that shares no code with the product: plain bytes and JSON."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

_TIMEOUT = 30
"""Seconds without a record after which the log cannot be read."""


class LogRecord(NamedTuple):
    """What a record says of itself."""

    partition: int
    source: bytes
    sequence: int
    execution: str
    name: str


@dataclass
class Audit:
    """What is in the log. A copy is a record whose source, partition and sequence came before."""

    records: int = 0
    copies: int = 0
    misplaced: int = 0
    """First copies whose sequence is not above all before it of its source and partition."""
    disordered: int = 0
    """First copies whose name is not after all before it of its execution, though they were
    published one after the other."""
    names: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, records: Iterable[LogRecord]) -> "Audit":
        """Of all records, in the order of each partition."""
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
    """Every record of the topic up to its end as it is now, one partition after the other."""
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
            place = TopicPartition(topic, partition)
            first, end = consumer.get_watermark_offsets(place)
            consumer.assign([TopicPartition(topic, partition, first)])
            for _ in range(first, end):
                message = consumer.poll(_TIMEOUT)
                if message is None:
                    raise RuntimeError(f"partition {partition}: no record within {_TIMEOUT} s")
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
