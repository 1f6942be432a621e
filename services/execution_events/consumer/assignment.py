"""The partitions that this member of the group may store, and their stored offsets."""

from typing import Protocol

from aiokafka import TopicPartition
from aiokafka.abc import ConsumerRebalanceListener

from execution_events.logs import Logger

_log = Logger(__name__)


class Seekable(Protocol):
    """The methods of `AIOKafkaConsumer` that an assignment uses."""

    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    def pause(self, *partitions: TopicPartition) -> None: ...
    def resume(self, *partitions: TopicPartition) -> None: ...


class Assignment(ConsumerRebalanceListener):  # type: ignore[misc]
    """The partitions of one generation: assigned, then seeded, delayed or halted.

    A partition is seeded once the client has sought its stored offset in this generation. Only
    seeded partitions are read: `positions` holds the offset up to which each is stored, and
    `epochs` the epoch of its log. A partition that cannot be seeded yet stays paused, with its
    error in `delayed`; a halted one stays paused, with its error in `halted`.
    """

    def __init__(self, client: Seekable) -> None:
        self._client = client
        self.generation = 0
        self.joined = False
        self.assigned: set[TopicPartition] = set()
        self.positions: dict[TopicPartition, int] = {}
        self.epochs: dict[TopicPartition, int] = {}
        self.delayed: dict[TopicPartition, str] = {}
        self.halted: dict[TopicPartition, str] = {}

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Drop all partitions: every rebalance is eager."""
        self._begin_generation(set())

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Pause the new partitions until they are seeded.

        The assignment is in effect before this call, and aiokafka would fetch as soon as this
        awaited; it never does. Seeking to 0 keeps aiokafka from requesting a committed offset.
        """
        self._begin_generation(assigned)
        self.joined = True
        for partition in assigned:
            self._client.seek(partition, 0)
            self._client.pause(partition)
        _log.info("partitions_assigned", partitions=sorted(p.partition for p in assigned))

    def unseeded(self) -> list[TopicPartition]:
        """Return the assigned partitions that are neither seeded nor halted, in order."""
        return sorted(self.assigned - self.positions.keys() - self.halted.keys())

    def seed(self, partition: TopicPartition, offset: int, epoch: int) -> None:
        """Read `partition` from `offset`, up to which it is stored."""
        self.delayed.pop(partition, None)
        self.halted.pop(partition, None)
        self._client.seek(partition, offset)
        self._client.resume(partition)
        self.positions[partition] = offset
        self.epochs[partition] = epoch

    def unseed(self, partition: TopicPartition) -> None:
        """Stop reading `partition` until its stored offset has been read again."""
        if self.positions.pop(partition, None) is not None:
            self._client.pause(partition)

    def delay(self, partition: TopicPartition, error: str) -> None:
        """Keep `partition` paused until another attempt to seed it."""
        self.unseed(partition)
        if partition not in self.halted:
            if self.delayed.get(partition) != error:
                _log.warning("partition_delayed", partition=partition.partition, error=error)
            self.delayed[partition] = error

    def halt(self, partition: TopicPartition, error: str) -> None:
        """Keep `partition` paused: continuing could lose or double-count occurrences."""
        self.unseed(partition)
        self.delayed.pop(partition, None)
        if self.halted.get(partition) != error:
            _log.error("partition_halted", partition=partition.partition, error=error)
        self.halted[partition] = error

    def _begin_generation(self, assigned: set[TopicPartition]) -> None:
        self.generation += 1
        self.assigned = set(assigned)
        self.positions.clear()
        self.epochs.clear()
        self.delayed.clear()
        self.halted.clear()
