"""Fixtures: a broker that tests may stop, readers, and writers to their databases."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from execution_events.embedded import EmbeddedKafka
from execution_events.store.write.batches import BatchWriter
from tests.support.databases import Database, administrator
from tests.support.readers import Reader, named, reading, reading_only
from tests.support.records import Log
from tests.support.servers import Servers, kafka


@pytest.fixture(scope="session")
async def own_kafka() -> AsyncIterator[EmbeddedKafka]:
    """A broker that tests may stop and freeze; each leaves it running."""
    async with kafka() as broker:
        yield broker


@pytest.fixture
async def writer(database: Database) -> AsyncIterator[BatchWriter]:
    """A writer of the partitions 0 to 2 of the topic `events`."""
    async with BatchWriter(database.writer, "events") as writer:
        for partition in range(3):
            await writer.begin_partition(partition, 0, "cluster")
        yield writer


@pytest.fixture
def written(writer: BatchWriter) -> Log:
    return Log(writer)


@pytest.fixture
async def owner(database: Database) -> AsyncIterator[asyncpg.Connection]:
    async with administrator(database.owner) as connection:
        await connection.execute("SET search_path = execution_events")
        yield connection


@pytest.fixture
async def admin(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A connection that can inspect and end those of others."""
    async with administrator(database.administrator) as connection:
        yield connection


@pytest.fixture
async def reader(database: Database) -> AsyncIterator[Reader]:
    async with reading(database.reader) as reader:
        yield reader


@pytest.fixture(scope="module")
async def idle(servers: Servers, template_database: str) -> AsyncIterator[Reader]:
    """A reader of an empty database that no test changes."""
    async with reading_only(servers, template_database) as reader:
        yield reader


@pytest.fixture(scope="module")
async def still(servers: Servers, template_database: str) -> AsyncIterator[Reader]:
    """A reader of one execution of three events that no test changes; its timeout is short."""
    events = [named(name, message="a message") for name in "abc"]
    async with reading_only(servers, template_database, *events, reader_head_timeout=1) as reader:
        yield reader
