"""A model of a consumer group: assignments, revocations, crashes, commits without a reply.

The members run the product's loop and writer against a real PostgreSQL. Only Kafka is a model, so
that hypothesis chooses every step and can repeat it.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import asyncpg
import pytest
from aiokafka import TopicPartition
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from prometheus_client import CollectorRegistry

from execution_events.consumer.assignment import Assignment
from execution_events.consumer.fetcher import BatchFetcher, FetchedBatch
from execution_events.consumer.log_check import LogState, Report
from execution_events.consumer.loop import ConsumeLoop
from execution_events.consumer.seeder import Seeder
from execution_events.errors import RetryableError
from execution_events.kafka.consumer import PartitionError
from execution_events.metrics import ConsumerMetrics
from execution_events.projection.batch import Projection
from execution_events.projection.fingerprint import fingerprint
from execution_events.store.write.batches import Batch, BatchWriter
from execution_events.store.write.progress import StoredPosition
from tests.support import databases
from tests.support.databases import Database
from tests.support.records import LogRecord, log, occurrence
from tests.support.servers import Servers

TOPIC = "machine"
PARTITIONS = 3
MEMBERS = 3
EXAMPLES, MORE_EXAMPLES = 25, 60
STEPS = 50

Log = dict[int, list[LogRecord]]


class ModelClient:
    """The methods of aiokafka's consumer that the loop uses, over logs in memory.

    Like aiokafka it fetches every partition that is assigned and not paused, as soon as it is
    assigned. An assignment begins at an arbitrary offset: here at the end.
    """

    address = "kafka:9092"
    read_bytes = 0

    def __init__(self, logs: Log) -> None:
        self.partition_errors: dict[TopicPartition, PartitionError] = {}
        self._logs = logs
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()

    def assign(self, partitions: set[TopicPartition]) -> None:
        self._positions = {p: len(self._logs[p.partition]) for p in partitions}
        self._paused = set()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._positions[partition] = offset

    def pause(self, *partitions: TopicPartition) -> None:
        self._paused.update(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self._paused.difference_update(partitions)

    async def getmany(
        self, *, timeout_ms: int, max_records: int, max_bytes: int
    ) -> dict[TopicPartition, list[LogRecord]]:
        fetched = {}
        for partition, position in self._positions.items():
            if partition not in self._paused:
                records = self._logs[partition.partition][position : position + max_records]
                if records:
                    fetched[partition] = records
                    self._positions[partition] = position + len(records)
        return fetched

    async def position(self, partition: TopicPartition) -> int:
        return self._positions[partition]

    def last_stable_offset(self, partition: TopicPartition) -> int:
        return len(self._logs[partition.partition])


class LossyWriter(BatchWriter):
    """A writer that loses its connection before or after the commit, as `fault` says."""

    fault = ""

    async def store(self, batch: Batch) -> Projection:
        fault, self.fault = self.fault, ""
        if fault == "before":
            raise RetryableError("connection lost before the commit")
        projection = await super().store(batch)
        if fault == "after":
            raise RetryableError("connection lost before the reply to the commit")
        return projection


async def seed(loop: ConsumeLoop) -> None:
    """Seed all partitions assigned to the loop's member."""
    while True:
        await loop._seeder.advance()
        if not loop._assignment.unseeded():
            return
        await loop._seeder.wait(1)


class Member(NamedTuple):
    """One member of the group."""

    client: ModelClient
    assignment: Assignment
    writer: LossyWriter
    loop: ConsumeLoop


class Tally:
    """Counts over all examples of a run."""

    steps = 0
    stores = 0
    ahead = 0


def machine(database: Database, tally: Tally) -> type[RuleBasedStateMachine]:
    """Return the state machine over one database; each example begins with empty tables."""

    class Group(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.runner = asyncio.Runner()
            self.logs: Log = {partition: [] for partition in range(PARTITIONS)}
            self.fetched: dict[int, FetchedBatch] = {}
            self.sequence = 0
            self.members: list[Member] = []
            self.connection: asyncpg.Connection

        @initialize()
        def begin(self) -> None:
            self.runner.run(self._begin())

        async def _begin(self) -> None:
            self.connection = await asyncpg.connect(
                database.owner, server_settings={"search_path": "execution_events"}
            )
            await self.connection.execute(
                "TRUNCATE event, execution, action, partition_progress, producer_progress,"
                " dead_letter"
            )
            self.members = [self._member() for _ in range(MEMBERS)]
            self.publish(12)
            self.rebalance(tuple(range(MEMBERS)))

        def _member(self) -> Member:
            client = ModelClient(self.logs)
            assignment = Assignment(client)
            writer = LossyWriter(database.writer, TOPIC)
            stop = asyncio.Event()
            metrics = ConsumerMetrics(CollectorRegistry())
            seeder = Seeder(assignment, writer, metrics, self._read_log, {})
            loop = ConsumeLoop(
                client,  # type: ignore[arg-type]
                assignment,
                BatchFetcher(client, assignment, 5, stop),  # type: ignore[arg-type]
                seeder,
                writer,
                metrics,
                lambda _: 0,
                stop,
            )
            return Member(client, assignment, writer, loop)

        async def _read_log(
            self, stored: Mapping[int, StoredPosition | None], _: object, report: Report
        ) -> None:
            for number, position in stored.items():
                records = self.logs[number]
                last = position.last if position is not None else None
                now = fingerprint(records[last.offset]) if last is not None else None
                report(number, LogState("cluster", 0, len(records), now))

        def publish(self, number: int) -> None:
            for _ in range(number):
                self.sequence += 1
                partition = self.sequence % PARTITIONS
                records = self.logs[partition]
                content = occurrence(
                    execution_id=f"execution-{partition}-{self.sequence % 4}",
                    name=f"object.{self.sequence % 3}",
                    count=self.sequence,
                )
                poison = self.sequence % 5 == 0
                source = "worker" if self.sequence % 4 < 2 else None
                records += log(
                    [b"not json" if poison else content], partition, len(records), source
                )

        @rule(partition=st.integers(0, PARTITIONS - 1), back=st.integers(1, 6))
        def send_again(self, partition: int, back: int) -> None:
            """Append a copy of a record that has a source."""
            records = self.logs[partition]
            if len(records) >= back and records[-back].headers:
                records.append(records[-back]._replace(offset=len(records)))

        @rule(owners=st.tuples(*[st.integers(0, MEMBERS - 1)] * PARTITIONS))
        def rebalance(self, owners: tuple[int, ...]) -> None:
            """Assign partitions to owners; all are revoked first, as in every eager rebalance."""
            for member in self.members:
                member.assignment.on_partitions_revoked(member.assignment.assigned)
            for number, member in enumerate(self.members):
                partitions = {TopicPartition(TOPIC, p) for p, o in enumerate(owners) if o == number}
                member.client.assign(partitions)
                member.assignment.on_partitions_assigned(partitions)

        @rule(number=st.integers(0, MEMBERS - 1), mine=st.sets(st.integers(0, PARTITIONS - 1)))
        def wake_as_a_zombie(self, number: int, mine: set[int]) -> None:
            """Assign a member partitions that others own too, as after a long freeze."""
            member = self.members[number]
            partitions = {TopicPartition(TOPIC, p) for p in mine}
            member.assignment.on_partitions_revoked(member.assignment.assigned)
            member.client.assign(partitions)
            member.assignment.on_partitions_assigned(partitions)

        @rule(more=st.integers(1, 20))
        def fetch(self, more: int) -> None:
            """Fetch in every member that has no fetched batch yet."""
            self.publish(more)
            for number in set(range(MEMBERS)) - self.fetched.keys():
                loop = self.members[number].loop
                self.runner.run(seed(loop))
                fetched = self.runner.run(loop._fetcher.fetch())
                if fetched is not None:
                    self.fetched[number] = fetched

        @rule(
            number=st.integers(0, MEMBERS - 1),
            fault=st.sampled_from(["", "before", "after"]),
            ahead=st.booleans(),
        )
        def store(self, number: int, fault: str, ahead: bool) -> None:
            if number not in self.fetched:
                self.fetch(2)
            fetched = self.fetched.pop(number, None)
            if fetched is not None:
                tally.stores += 1
                member = self.members[number]
                member.writer.fault = fault
                if ahead:
                    self.publish(1)
                    following = self.runner.run(member.loop._store_and_fetch(fetched))
                    if following is not None:
                        tally.ahead += 1
                        self.fetched[number] = following
                else:
                    self.runner.run(member.loop._store(fetched))
                member.writer.fault = ""

        @rule(
            number=st.integers(0, MEMBERS - 1),
            owners=st.tuples(*[st.integers(0, MEMBERS - 1)] * PARTITIONS),
        )
        def crash(self, number: int, owners: tuple[int, ...]) -> None:
            """Replace a member by a new one; its fetched batch is lost."""
            self.fetched.pop(number, None)
            self.runner.run(self.members[number].writer._disconnect())
            self.members[number] = self._member()
            self.rebalance(owners)

        @invariant()
        def rows_equal_the_fold_of_the_stored_records(self) -> None:
            tally.steps += 1
            if self.members:
                self.runner.run(self._check())

        async def _check(self) -> None:
            rows = await self.connection.fetch(
                "SELECT partition, next_offset FROM partition_progress"
            )
            stored = {row["partition"]: row["next_offset"] for row in rows}
            expected: Counter[tuple[str, str]] = Counter()
            refused = set()
            for partition, end in stored.items():
                seen: set[bytes] = set()
                for record in self.logs[partition][:end]:
                    sequence = dict(record.headers).get("ce_sequence")
                    if sequence is not None:
                        if sequence in seen:
                            continue
                        seen.add(sequence)
                    if record.value == b"not json":
                        refused.add((partition, record.offset))
                    else:
                        content = json.loads(record.value or b"")
                        key = (content["executionId"], content["metadata"]["name"])
                        expected[key] += content["count"]
            rows = await self.connection.fetch("SELECT execution_id, name, count FROM event")
            assert {(row[0], row[1]): row[2] for row in rows} == expected
            letters = await self.connection.fetch(
                "SELECT partition, record_offset FROM dead_letter"
            )
            assert sorted(map(tuple, letters)) == sorted(refused)

        def teardown(self) -> None:
            self.runner.run(self._end())
            self.runner.close()

        async def _end(self) -> None:
            """Finish with one member, which must store the rest, once."""
            if not self.members:
                return
            for member in self.members:
                await member.writer._disconnect()
            last = self._member()
            partitions = {TopicPartition(TOPIC, p) for p in range(PARTITIONS)}
            last.client.assign(partitions)
            last.assignment.on_partitions_assigned(partitions)
            await seed(last.loop)
            while (fetched := await last.loop._fetcher.fetch()) is not None:
                await last.loop._store(fetched)
            await self._check()
            rows = await self.connection.fetch(
                "SELECT partition, next_offset FROM partition_progress"
            )
            stored = {row["partition"]: row["next_offset"] for row in rows}
            assert stored == {partition: len(records) for partition, records in self.logs.items()}
            await last.writer._disconnect()
            await self.connection.close()

    return Group


@pytest.mark.parametrize(
    "examples", [EXAMPLES, pytest.param(MORE_EXAMPLES, marks=pytest.mark.more)]
)
async def test_counts_are_exact_after_any_sequence_of_steps(
    servers: Servers, template_database: str, examples: int
) -> None:
    async with databases.cloned(servers.administrator_url, template_database) as database:
        tally = Tally()
        await asyncio.to_thread(
            run_state_machine_as_test,
            machine(database, tally),
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert tally.steps >= 30 * examples
    assert tally.stores >= 1.5 * examples
    assert tally.ahead >= examples / 6


async def test_a_batch_fetched_after_one_that_is_not_stored_is_read_again(
    servers: Servers, template_database: str
) -> None:
    async with databases.cloned(servers.administrator_url, template_database) as database:
        await asyncio.to_thread(_lose_a_reply, machine(database, Tally()))


def _lose_a_reply(group_type: type[RuleBasedStateMachine]) -> None:
    group: Any = group_type()
    group.begin()
    group.rebalance((0,) * PARTITIONS)
    member, run = group.members[0], group.runner.run
    run(seed(member.loop))
    run(member.loop._store(run(member.loop._fetcher.fetch())))
    group.publish(1)
    fetched = run(member.loop._fetcher.fetch())
    # In another partition, which the failed batch does not move.
    group.publish(1)
    member.writer.fault = "after"
    assert run(member.loop._store_and_fetch(fetched)) is None
    group.fetch(1)
    run(member.loop._store(group.fetched.pop(0)))
    group.teardown()


async def test_a_batch_of_an_earlier_generation_is_not_stored(
    servers: Servers, template_database: str
) -> None:
    async with databases.cloned(servers.administrator_url, template_database) as database:
        await asyncio.to_thread(_rebalance_with_a_batch, machine(database, Tally()))


def _rebalance_with_a_batch(group_type: type[RuleBasedStateMachine]) -> None:
    """The same member owns the partitions again, and more records follow than it has fetched."""
    group: Any = group_type()
    group.begin()
    group.rebalance((0,) * PARTITIONS)
    member, run = group.members[0], group.runner.run
    run(seed(member.loop))
    fetched = run(member.loop._fetcher.fetch())
    group.publish(12)
    group.rebalance((0,) * PARTITIONS)
    run(seed(member.loop))
    following = run(member.loop._store_and_fetch(fetched))
    if following is not None:
        run(member.loop._store(following))
    group.rows_equal_the_fold_of_the_stored_records()
    group.teardown()
