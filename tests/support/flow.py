"""Random writes to executions under watch, and the state of each event after each revision."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from random import Random
from typing import Any, NamedTuple

from execution_events.events import Occurrence
from execution_events.store.write.batches import BatchWriter
from tests.support.databases import Database
from tests.support.readers import at
from tests.support.records import batch, log, occurrence
from tests.support.watching import Key

EXECUTIONS = ("execution-1", "execution-2")
NAMESPACES = ("tenant", "other")
SELECTED: dict[str, Any] = {
    "reason": "失败##ActionFailed",
    "message": "Straße",
    "type": "Warning",
    "elem_id": "x",
}
"""Fields that all of `FILTERS` match."""
BOUND = 1000
"""A second in the middle of the events' times."""

FILTERS: list[tuple[dict[str, Any], Callable[[Occurrence], bool]]] = [
    ({}, lambda _: True),
    ({"elemId": "x"}, lambda event: event.elem_id == "x"),
    ({"type": "Warning", "lang": "en"}, lambda event: event.type == "Warning"),
    ({"q": "STRAßE", "lang": "zh"}, lambda event: event.message == "Straße"),
    ({"excludeReason": "ActionStart", "order": "desc"}, lambda e: "Start" not in e.reason),
    (
        {"reason": "失败", "since": f"{at(BOUND):%FT%TZ}", "excludeElemId": "y"},
        lambda event: (
            "失败" in event.reason and event.last_timestamp >= at(BOUND) and event.elem_id == "x"
        ),
    ),
]
"""Parameters and the events that they select; events enter and leave all but the first."""


class State(NamedTuple):
    """An event after a revision changed it."""

    execution_id: str
    key: Key
    total: int
    latest: Occurrence


class Flow:
    """Several writers to the same executions, each with its own events."""

    def __init__(self, writers: list[BatchWriter], rng: Random) -> None:
        self.states: list[State] = []
        """The committed states; those of one event are in order."""
        self.batches = 0
        self._stored = asyncio.Condition()
        self._writers = writers
        self._rng = rng
        self._next = [0] * len(writers)
        self._latest: dict[tuple[str, Key], State] = {}
        self._names = 2

    @classmethod
    @asynccontextmanager
    async def open(cls, database: Database, rng: Random, writers: int = 2) -> AsyncIterator["Flow"]:
        async with AsyncExitStack() as stack:
            opened = []
            for partition in range(writers):
                writer = BatchWriter(database.writer, "events")
                opened.append(await stack.enter_async_context(writer))
                await writer.begin_partition(partition, 0, "cluster")
            yield cls(opened, rng)

    async def write(self, number: int, goes_on: Callable[[], bool]) -> None:
        """Write batches as one writer while `goes_on` holds."""
        while goes_on():
            # New names come at a falling rate.
            self._names += self._rng.random() < 10 / self._names
            await self._store(number, [self._any(number) for _ in range(self._rng.randint(1, 6))])

    async def until(self, batches: int) -> None:
        """Return once so many batches are stored."""
        async with self._stored:
            await self._stored.wait_for(lambda: self.batches >= batches)

    async def begin(self) -> None:
        """Store one execution long enough that its list is streamed."""
        await self._store(0, [_selected(EXECUTIONS[1], NAMESPACES[0], f"{n}") for n in range(300)])

    async def end(self) -> None:
        """Store a last event, matched by every filter, in each execution and namespace."""
        for execution_id in EXECUTIONS:
            for namespace in NAMESPACES:
                await self._store(0, [_selected(execution_id, namespace, "last")])

    def _any(self, number: int) -> Occurrence:
        rng = self._rng
        # Some are older than the stored one, whose texts then stay.
        moment = at(rng.uniform(0, 2 * BOUND))
        return occurrence(
            execution_id=rng.choice(EXECUTIONS),
            namespace=rng.choice(NAMESPACES),
            name=f"{number}.{rng.randrange(self._names)}",
            reason=rng.choice([SELECTED["reason"], "启动##ActionStart"]),
            message=rng.choice([SELECTED["message"], "## started"]),
            type=rng.choice([SELECTED["type"], "Normal"]),
            elem_id=rng.choice([SELECTED["elem_id"], "y"]),
            first_timestamp=moment - timedelta(seconds=rng.random()),
            last_timestamp=moment,
            count=rng.randint(1, 3),
        )

    async def _store(self, number: int, occurrences: list[Occurrence]) -> None:
        records = log(occurrences, partition=number, begin=self._next[number])
        await self._writers[number].store(batch(records))
        self._next[number] += len(records)
        self.batches += 1
        changed = {}
        for one in occurrences:
            identity = one.execution_id, (one.namespace, one.name)
            before = self._latest.get(identity)
            if before is None:
                state = State(*identity, one.count, one)
            else:
                is_later = one.last_timestamp >= before.latest.last_timestamp
                state = State(
                    *identity, before.total + one.count, one if is_later else before.latest
                )
            self._latest[identity] = changed[identity] = state
        self.states += changed.values()
        async with self._stored:
            self._stored.notify_all()


def _selected(execution_id: str, namespace: str, name: str) -> Occurrence:
    return occurrence(
        execution_id=execution_id,
        namespace=namespace,
        name=name,
        first_timestamp=at(2 * BOUND),
        last_timestamp=at(2 * BOUND),
        **SELECTED,
    )
