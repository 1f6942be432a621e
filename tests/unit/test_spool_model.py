"""The spool agrees with a model of its records."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from execution_events.errors import (
    SpoolFullError,
)
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool.file import create, summary
from execution_events.publisher.spool.spool import Spool
from tests.support.spools import HOLD_MS, age, assigned, partition_of, record, timeless


class _Stored:
    def __init__(self, sequence: int, new: PendingRecord) -> None:
        self.sequence = sequence
        self.new = new
        self.partition: int | None = None
        self.state = "waiting"  # or in flight, held, refused


class Model(RuleBasedStateMachine):
    """The spool agrees with a list of its records."""

    LIMIT = 600

    @initialize()
    def make(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "spool.db"
        create(self.path)
        self.spool = Spool(self.path, self.LIMIT)
        self.stored: list[_Stored] = []
        self.last = 0
        self.count = 0
        self.opened = 0

    def teardown(self) -> None:
        self.spool.close()
        self.directory.cleanup()

    def in_state(self, *states: str) -> list[_Stored]:
        return [stored for stored in self.stored if stored.state in states]

    def bytes(self, new: list[PendingRecord]) -> int:
        return sum(len(r.key) + len(r.value) + len(r.traceparent or "") + 32 for r in new)

    @rule(
        sizes=st.lists(st.integers(0, 60), max_size=4),
        acknowledged=st.lists(st.integers(0, 12), max_size=4),
        limit=st.integers(0, 5),
        connected=st.booleans(),
        blocked=st.frozensets(st.integers(0, 6), max_size=5),
    )
    def commit(
        self,
        sizes: list[int],
        acknowledged: list[int],
        limit: int,
        connected: bool,
        blocked: frozenset[int],
    ) -> None:
        new = []
        for size in sizes:
            self.count += 1
            new.append(replace(record(self.count, size), traceparent="t" * (size % 3) or None))
        in_flight = self.in_state("in flight")
        done = [in_flight[i] for i in acknowledged if i < len(in_flight)]
        call = (new, [stored.sequence for stored in done])
        opened = self.opened

        def partition_of_key(key: bytes) -> int:
            return (partition_of(key) + opened) % 7

        partitioner = partition_of_key if connected else None
        self.stored = [stored for stored in self.stored if stored not in done]
        if new and self.bytes([stored.new for stored in self.stored] + new) > self.LIMIT:
            with pytest.raises(SpoolFullError):
                self.spool.commit(*call, limit=limit, partition_of=partitioner, blocked=blocked)
            return
        for one in new:
            self.last += 1
            self.stored.append(_Stored(self.last, one))
        expected: list[tuple[_Stored, int]] = []
        for stored in self.in_state("waiting") if connected else ():
            partition = stored.partition
            if partition is None:
                partition = partition_of_key(stored.new.key)
            if len(expected) < limit and partition not in blocked:
                expected.append((stored, partition))
        for stored, partition in expected:
            stored.state, stored.partition = "in flight", partition
        fetched = self.spool.commit(*call, limit=limit, partition_of=partitioner, blocked=blocked)
        assert timeless(fetched) == [
            assigned(stored.new, stored.sequence, partition) for stored, partition in expected
        ]

    @rule(which=st.lists(st.integers(0, 5), max_size=3))
    def requeue(self, which: list[int]) -> None:
        in_flight = self.in_state("in flight")
        requeued = [in_flight[i] for i in which if i < len(in_flight)]
        for stored in requeued:
            stored.state = "waiting"
        self.spool.requeue([stored.sequence for stored in requeued])

    @rule(which=st.lists(st.integers(0, 5), max_size=3))
    def hold(self, which: list[int]) -> None:
        in_flight = self.in_state("in flight")
        held = [in_flight[i] for i in set(which) if i < len(in_flight)]
        for stored in held:
            stored.state = "held"
        self.spool.hold([stored.sequence for stored in held])

    @rule(partitions=st.integers(0, 7))
    def reassign_partitions(self, partitions: int) -> None:
        if not self.in_state("in flight"):
            stranded = [
                stored
                for stored in self.in_state("waiting")
                if (stored.partition or 0) >= partitions > 0
            ]
            for stored in stranded:
                self.last += 1
                self.stored.remove(stored)
                self.stored.append(_Stored(self.last, stored.new))
            if partitions:
                assert self.spool.reassign_partitions(partitions) == len(stranded)

    @rule(which=st.integers(0, 3))
    def refuse(self, which: int) -> None:
        in_flight = self.in_state("in flight")
        if which < len(in_flight):
            in_flight[which].state = "refused"
            self.spool.refuse(in_flight[which].sequence, "too large")

    @rule(aged=st.booleans())
    def reopen(self, aged: bool) -> None:
        self.spool.close()
        if aged:
            age(self.path, HOLD_MS)
        for stored in self.in_state("waiting", "in flight"):
            stored.state = "held" if stored.partition is not None and aged else "waiting"
        self.spool = Spool(self.path, self.LIMIT)
        self.opened += 1

    @rule()
    def accept_duplicates(self) -> None:
        aside = self.in_state("held", "refused")
        for stored in aside:
            self.last += 1
            self.stored.remove(stored)
            self.stored.append(_Stored(self.last, stored.new))
        assert self.spool.accept_duplicates() == len(aside)

    @invariant()
    def agree(self) -> None:
        spool = self.spool
        assert spool.pending == len(self.in_state("waiting", "in flight"))
        assert spool.held == len(self.in_state("held"))
        assert spool.refused == len(self.in_state("refused"))
        assert spool.bytes == self.bytes([stored.new for stored in self.stored])
        assert spool.last == self.last
        waiting = self.in_state("waiting")
        assert spool.fetched == spool.last or waiting
        over = {stored.partition for stored in waiting if stored.sequence <= spool.fetched}
        assert not over or over - {None} <= spool._skipped_from.keys() != set()
        oldest = min((stored.new.created_at for stored in self.stored), default=None)
        assert summary(self.path) == (
            (spool.source, spool.pending, spool.held, spool.refused, spool.bytes, oldest, {})
        )


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
