"""The assignment: which partitions are read, from which offset."""

import pytest
from aiokafka import TopicPartition

from execution_events.consumer.assignment import Assignment

FIRST, SECOND = TopicPartition("events", 0), TopicPartition("events", 1)


class RecordingClient:
    """A client that keeps the paused partitions and the last offset of each seek."""

    def __init__(self) -> None:
        self.paused: set[TopicPartition] = set()
        self.offsets: dict[TopicPartition, int] = {}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.offsets[partition] = offset

    def pause(self, *partitions: TopicPartition) -> None:
        self.paused |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self.paused -= set(partitions)


@pytest.fixture
def client() -> RecordingClient:
    return RecordingClient()


@pytest.fixture
def assignment(client: RecordingClient) -> Assignment:
    assignment = Assignment(client)
    assignment.on_partitions_assigned({FIRST, SECOND})
    return assignment


def test_assigned_partitions_are_paused_until_they_are_seeded(
    client: RecordingClient, assignment: Assignment
) -> None:
    assert client.paused == {FIRST, SECOND}
    assignment.seed(FIRST, 7, epoch=2)
    assert client.paused == {SECOND}
    assert client.offsets[FIRST] == 7
    assert (assignment.positions, assignment.epochs) == ({FIRST: 7}, {FIRST: 2})
    assert assignment.unseeded() == [SECOND]


def test_delayed_and_halted_partitions_are_paused(
    client: RecordingClient, assignment: Assignment
) -> None:
    for partition in (FIRST, SECOND):
        assignment.seed(partition, 7, epoch=0)
    assignment.delay(FIRST, "no leader")
    assignment.halt(SECOND, "another log")
    assert client.paused == {FIRST, SECOND}
    assert not assignment.positions
    assert (assignment.delayed, assignment.halted) == (
        {FIRST: "no leader"},
        {SECOND: "another log"},
    )
    assert assignment.unseeded() == [FIRST]


def test_a_new_generation_has_no_positions(client: RecordingClient, assignment: Assignment) -> None:
    assignment.seed(FIRST, 7, epoch=0)
    generation = assignment.generation
    assignment.on_partitions_revoked({FIRST, SECOND})
    assert not assignment.positions
    assignment.on_partitions_assigned({FIRST})
    assert assignment.generation == generation + 2
    assert not assignment.positions
    assert client.paused >= {FIRST}
