"""Every field at its bound, in characters of four bytes that do not compress."""

import random
import string
from datetime import timedelta

import asyncpg
import msgspec

from execution_events.events import (
    MESSAGE_MAX_BYTES,
    NAME_MAX_BYTES,
    RECORD_COUNT_MAX,
    TEXT_MAX_CHARACTERS,
    Occurrence,
)
from execution_events.store.write.batches import BatchWriter
from tests.support.databases import Database
from tests.support.readers import Reader
from tests.support.records import EPOCH, batch, log
from tests.support.watching import Watcher

KEY = {"execution_id", "namespace"}
TOPIC_BYTES = 249
TEXT_BYTES = 4 * TEXT_MAX_CHARACTERS
INDEX_BYTES = 600
"""Limit of an index row besides an execution id and a namespace."""

INDEXED = {
    **dict.fromkeys(("name", "object_name"), NAME_MAX_BYTES),
    "topic": TOPIC_BYTES,
    "source": TEXT_BYTES,
    "source_hash": 32,
    **dict.fromkeys(("reason", "type", "elem_type", "elem_id", "action_name"), TEXT_BYTES),
    **dict.fromkeys(("partition", "version"), 4),
    **dict.fromkeys(
        ("id", "list_position", "revision", "element_hash", "kind", "duration_seconds"), 8
    ),
    # `timezone` is a time in UTC, by the function that an expression of an index calls.
    **dict.fromkeys(("created_at", "timezone", "finished", "minute", "refused_at"), 8),
    **dict.fromkeys(("action_key", "state"), 16),
}
"""Maximum size of columns."""

_rng = random.Random(15)


def text(size: int) -> str:
    """Return `size` bytes of UTF-8: characters of four bytes, and up to three letters."""
    wide = "".join(chr(_rng.randrange(0x20000, 0x2A6D0)) for _ in range(size // 4))
    return wide + "xyz"[: size % 4]


def largest(execution_id: str, namespace: str) -> Occurrence:
    """Return an occurrence with every field at its bound."""
    return Occurrence(
        execution_id=execution_id,
        namespace=namespace,
        name=text(NAME_MAX_BYTES),
        object_name=text(NAME_MAX_BYTES),
        object_namespace=text(NAME_MAX_BYTES),
        reason=f"{text(4 * 127)}##{text(4 * 127)}",
        message=text(MESSAGE_MAX_BYTES),
        first_timestamp=EPOCH,
        last_timestamp=EPOCH,
        count=RECORD_COUNT_MAX,
        type=text(TEXT_BYTES),
        elem_type=text(TEXT_BYTES),
        elem_id=text(TEXT_BYTES),
        action_name=text(TEXT_BYTES),
    )


async def test_an_event_at_every_bound_is_stored_listed_watched_and_found(
    database: Database, reader: Reader, owner: asyncpg.Connection
) -> None:
    execution_id = "".join(_rng.choices(string.ascii_letters + string.digits + "._:-", k=128))
    namespace = text(NAME_MAX_BYTES)
    one, other = largest(execution_id, namespace), largest(execution_id, namespace)
    later = EPOCH + timedelta(seconds=5)
    other = msgspec.structs.replace(other, first_timestamp=later, last_timestamp=later)
    source, topic = text(TEXT_BYTES), "".join(_rng.choices(string.ascii_letters, k=TOPIC_BYTES))
    path = f"/v1/executions/{execution_id}/events"

    async def found(**params: str) -> list[str]:
        return [event["metadata"]["name"] for event in await reader.events(path, params)]

    async with BatchWriter(database.writer, topic) as writer:
        await writer.begin_partition(0, 0, "cluster")
        assert (await writer.store(batch(log([one, other], source=source)))).duplicates == 0
        copies = [record._replace(offset=record.offset + 2) for record in log([one], source=source)]
        assert (await writer.store(batch(copies))).duplicates == 1

        assert [event["count"] for event in await reader.events(path)] == [one.count, other.count]
        half = one.reason.split("##")
        filters = {"type": one.type, "elemType": one.elem_type, "elemId": one.elem_id,
                   "actionName": one.action_name, "reason": one.reason}  # fmt: skip
        for name, value in (*filters.items(), ("reason", half[0]), ("reason", half[1])):
            assert await found(**{name: value}) == [one.name], name
            excluded = f"exclude{name[0].upper()}{name[1:]}"
            assert await found(**{excluded: value}) == [other.name], excluded
        for value in (one.message[-TEXT_MAX_CHARACTERS:], one.reason):
            assert await found(q=value) == [one.name]
        assert await found(since="2026-01-01T00:00:01Z") == [other.name]
        assert await found(until="2026-01-01T00:00:01Z") == [one.name]
        page = await reader.get(path, params={"limit": 1})
        marker = page.headers["X-Next-Marker"]
        assert await found(limit="1", marker=marker) == [other.name]

        watcher = Watcher()
        async with watcher.watching(reader.api, path, {"elemId": one.elem_id}) as watch:
            await watch.next(2)
            records = [record._replace(offset=record.offset + 3) for record in log([one, other])]
            await writer.store(batch(records))
            [message] = await watch.next()
            assert message.data["metadata"]["name"] == one.name
            assert message.data["count"] == 2 * RECORD_COUNT_MAX

    columns: dict[str, object] = {name: getattr(one, name) for name in Occurrence.__struct_fields__}
    columns |= {"reason_zh": half[0], "reason_code": half[1], "count": 2 * RECORD_COUNT_MAX}
    for name, stored in columns.items():
        rows = await owner.fetch(f"SELECT name FROM ops.events_v1 WHERE {name} = $1", stored)
        assert one.name in [row["name"] for row in rows], name


async def test_no_index_row_exceeds_the_limit(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        """
        SELECT indexrelid::regclass::text AS index, array_agg(attname) AS columns
        FROM pg_index
        JOIN pg_class ON pg_class.oid = indrelid
        JOIN pg_attribute ON attrelid = indexrelid
        WHERE relnamespace = 'execution_events'::regnamespace
        GROUP BY 1
        """
    )
    # A new column of an index belongs into INDEXED.
    sizes = {
        row["index"]: sum(INDEXED[column] for column in {*row["columns"]} - KEY) for row in rows
    }
    assert {index: size for index, size in sizes.items() if size > INDEX_BYTES} == {}
    assert len(sizes) >= 8
