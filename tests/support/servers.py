"""Kafka and PostgreSQL of tests, benchmarks and the fault matrix.

`servers` are those of the tests: embedded, in containers, or already running.

`EXECUTION_EVENTS_TEST_BACKEND` chooses `embedded` (the default) or `testcontainers`;
`EXECUTION_EVENTS_TEST_KAFKA` (host:port) and `EXECUTION_EVENTS_TEST_DATABASE_URL` (of an
administrator) together name running servers instead. `EXECUTION_EVENTS_TEST_POSTGRESQL` (15 to 18)
chooses the embedded PostgreSQL's version. The tests are the same on each.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from execution_events.embedded import (
    DataDirectory,
    EmbeddedKafka,
    EmbeddedPostgres,
    running,
)
from tests.support import postgresql
from tests.support.configuration import CACHE_DIR

_KAFKA_IMAGE = "apache/kafka:4.3.1"
_POSTGRES_IMAGE = f"postgres:{postgresql.chosen()}"

# Tests that crash the server on purpose start one of their own.
_FAST_POSTGRES = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Servers(NamedTuple):
    """The addresses of both; `administrator_url` is a superuser's."""

    bootstrap_servers: str
    administrator_url: str


@asynccontextmanager
async def servers() -> AsyncIterator[Servers]:
    """The servers of the chosen backend; those that are not running already are started."""
    kafka = os.environ.get("EXECUTION_EVENTS_TEST_KAFKA")
    database_url = os.environ.get("EXECUTION_EVENTS_TEST_DATABASE_URL")
    if kafka and database_url:
        yield Servers(kafka, database_url)
        return
    backends = {"embedded": _embedded, "testcontainers": _containers}
    async with backends[os.environ.get("EXECUTION_EVENTS_TEST_BACKEND", "embedded")]() as started:
        yield started


@asynccontextmanager
async def data_directory() -> AsyncIterator[DataDirectory]:
    """A directory for embedded servers, removed at the end; its parent is for other files."""
    with tempfile.TemporaryDirectory(prefix="execution-events-tests-") as parent:
        # An unprivileged account must reach PostgreSQL's data when root runs the tests.
        await asyncio.to_thread(Path(parent).chmod, 0o711)
        async with DataDirectory(Path(parent) / "data") as directory:
            yield directory


@asynccontextmanager
async def kafka(properties: Mapping[str, str] | None = None) -> AsyncIterator[EmbeddedKafka]:
    """A broker that is ready; `properties` override the product's server.properties."""
    async with data_directory() as directory, broker_in(directory, properties) as broker:
        yield broker


def broker_in(
    directory: DataDirectory, properties: Mapping[str, str] | None = None, port: int | None = None
) -> EmbeddedKafka:
    """A broker that keeps its data in `directory`, not started."""
    return EmbeddedKafka(directory, CACHE_DIR, port=port, settings=properties)


@asynccontextmanager
async def _embedded() -> AsyncIterator[Servers]:
    async with data_directory() as directory:
        broker = broker_in(directory)
        database = EmbeddedPostgres(
            directory, settings=_FAST_POSTGRES, packages=await postgresql.packages()
        )
        async with running(broker, database):
            yield Servers(broker.bootstrap_servers, database.dsn())


@asynccontextmanager
async def _containers() -> AsyncIterator[Servers]:
    from testcontainers.kafka import KafkaContainer
    from testcontainers.postgres import PostgresContainer

    kafka = KafkaContainer(_KAFKA_IMAGE).with_kraft()
    postgres = PostgresContainer(_POSTGRES_IMAGE, driver=None)
    try:
        await asyncio.gather(asyncio.to_thread(kafka.start), asyncio.to_thread(postgres.start))
        yield Servers(kafka.get_bootstrap_server(), postgres.get_connection_url())
    finally:
        await asyncio.gather(asyncio.to_thread(kafka.stop), asyncio.to_thread(postgres.stop))
