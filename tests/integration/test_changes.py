"""The changes of each revision are recorded, and deleted after their retention."""

from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from execution_events.settings import Settings
from execution_events.store.connection import fetch_one
from execution_events.store.write.batches import BatchWriter
from tests.support.consumers import consuming, until
from tests.support.filling import write
from tests.support.readers import named
from tests.support.records import batch, log


@pytest.fixture
async def changes(owner: asyncpg.Connection) -> Any:
    async def read() -> list[tuple[Any, ...]]:
        rows = await owner.fetch(
            "SELECT execution_id, namespace, revision, previous, names, rewritten"
            " FROM execution_events.execution_change ORDER BY execution_id, namespace, revision"
        )
        return [tuple(row) for row in rows]

    return read


async def test_each_revision_names_the_previous_one(
    writer: BatchWriter, owner: asyncpg.Connection, changes: Any
) -> None:
    first, other = named("a"), named("a", namespace="other")
    await writer.store(batch(log([first, other, named("b"), first])))
    await writer.store(batch(log([named("a", 1), named("c")], begin=4)))
    await writer.store(batch(log([b"not json"], begin=6)))
    rows = await owner.fetch("SELECT namespace, revision FROM execution_events.execution")
    current = dict(map(tuple, rows))
    other_first, first_change, second_change = await changes()
    assert other_first == ("execution-1", "other", current["other"], None, ["a"], [])
    assert first_change == ("execution-1", "tenant", second_change[3], None, ["a", "b"], [])
    assert second_change == (
        "execution-1",
        "tenant",
        current["tenant"],
        first_change[2],
        ["a", "c"],
        [],
    )


@pytest.mark.parametrize(
    "field", ["reason", "message", "type", "elem_type", "elem_id", "action_name"]
)
async def test_events_whose_texts_change_are_marked_as_rewritten(
    writer: BatchWriter, changes: Any, field: str
) -> None:
    before = [named("a", 5), named("b", 5), named("c", 5)]
    # An older occurrence does not change the stored texts.
    after = [named("a", 6, **{field: "x"}), named("b", 4, **{field: "x"}), named("c", 6)]
    await writer.store(batch(log([*before, *after[:0]])))
    await writer.store(batch(log(after, begin=3)))
    _, (*_, names, rewritten) = await changes()
    assert (names, rewritten) == (["a", "b", "c"], [True, False, False])


async def test_old_changes_are_forgotten_in_batches(
    writer: BatchWriter,
    owner: asyncpg.Connection,
    changes: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("execution_events.store.write.events._PURGE_BATCH", 2)
    await write(owner, [named("a", execution_id=f"execution-{number}") for number in range(3)])
    retention = timedelta(minutes=1)
    assert not await writer.purge_changes(retention)
    await owner.execute("UPDATE execution_events.execution_change SET revision = revision - 61e6")
    await writer.store(batch(log([named("b")])))
    assert await writer.purge_changes(retention)
    assert not await writer.purge_changes(retention)
    [(execution_id, _, _, previous, names, _)] = await changes()
    assert (execution_id, names) == ("execution-1", ["b"])
    assert previous is not None


async def test_a_consumer_forgets_old_changes(
    settings: Settings, owner: asyncpg.Connection, changes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches, between the batches that the consumer stores and while it has none."""
    monkeypatch.setattr("execution_events.store.write.events._PURGE_BATCH", 2)
    monkeypatch.setattr("execution_events.consumer.loop._PURGE_INTERVAL", 0.1)
    await write(owner, [named("a", execution_id=f"execution-{number}") for number in range(9)])
    await owner.execute("UPDATE execution_events.execution_change SET revision = revision - 6e8")
    await write(owner, [named("b")])

    async def only_the_last() -> bool:
        return [names for *_, names, _ in await changes()] == [["b"]]

    async with consuming(settings):
        await until(only_the_last, "the old changes are forgotten")


async def test_the_oldest_are_forgotten_first(
    writer: BatchWriter, changes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a watcher could not detect a missing change."""
    monkeypatch.setattr("execution_events.store.write.events._PURGE_BATCH", 1)
    for number, name in enumerate("abc"):
        await writer.store(batch(log([named(name)], begin=number)))
    left = await changes()
    while left:
        assert await changes() == left
        await writer.purge_changes(timedelta())
        left = left[1:]
    assert await changes() == []


async def test_a_merge_keeps_the_texts_of_the_stored_body(
    owner: asyncpg.Connection,
) -> None:
    """A merge reads the stored body alone; `test_migrate.py` tests those of migration 6."""
    quoted = named("a", 5, message='"\\\n\x01\x7f \u2028 元 😀', object_namespace="o")
    await write(owner, [quoted])
    await write(owner, [named("a", 3, message="older", count=4)])
    row = await fetch_one(
        owner,
        "SELECT body_text(body, 'message') AS message, count,"
        " body_text(body, 'involvedObject', 'namespace') AS object_namespace FROM event",
    )
    assert tuple(row) == (quoted.message, 5, "o")
