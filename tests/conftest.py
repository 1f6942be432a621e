"""Fixtures for all tests: servers for the whole run, a database and a topic for each test."""

import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from execution_events.settings import Settings
from tests.support import databases, postgresql
from tests.support.configuration import configured
from tests.support.databases import Database
from tests.support.occurrences import Fetch
from tests.support.servers import Servers
from tests.support.servers import servers as start_servers
from tests.support.topics import make_topic

PARTITIONS = 3
WORKERS = 3
"""Processes that run the tests of several files, each with servers of its own; many tests wait."""


# A shell starts background jobs with SIGINT ignored, and so would be the commands under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of worker processes; 0 runs the tests of a single file in this one."""
    return 0 if len(named := _named(config)) == 1 and named[0].is_file() else WORKERS


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked "more" unless `-m` or the name of their file chooses them.

    If a version of PostgreSQL is chosen, leave out tests without a database too.
    """
    left_out: list[pytest.Item] = []
    if not config.option.markexpr:
        files = {path.resolve() for path in _named(config)}
        left_out += [i for i in items if i.get_closest_marker("more") and i.path not in files]
    if postgresql.VARIABLE in os.environ:
        left_out += [item for item in items if "servers" not in getattr(item, "fixturenames", ())]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _named(config: pytest.Config) -> list[Path]:
    """Return the distinct files and directories of the command line."""
    return [Path(path) for path in {argument.partition("::")[0] for argument in config.args}]


@pytest.fixture(scope="session")
async def servers() -> AsyncIterator[Servers]:
    """Kafka and PostgreSQL."""
    async with start_servers() as started:
        yield started


@pytest.fixture(scope="session")
async def template_database(servers: Servers) -> AsyncIterator[str]:
    """The migrated database that others are cloned from."""
    async with databases.template(servers.administrator_url) as name:
        yield name


@pytest.fixture
async def database(
    request: pytest.FixtureRequest, servers: Servers, template_database: str
) -> AsyncIterator[Database]:
    """A migrated, empty database for each test.

    At the end its states must equal a recomputation from its events, unless the test is marked
    "tampers": it changes tables or rows by itself.
    """
    tampers = request.node.get_closest_marker("tampers") is not None
    async with databases.cloned(
        servers.administrator_url, template_database, compare=not tampers
    ) as database:
        yield database


@pytest.fixture
async def settings(servers: Servers, database: Database) -> Settings:
    """Consumer settings with a new topic and group for each test."""
    name = f"test-{secrets.token_hex(4)}"
    settings = configured(
        kafka_bootstrap_servers=servers.bootstrap_servers,
        topic=name,
        group=name,
        database_url=database.writer,
        management_port=0,
        reader_port=0,
        drain_delay=0,
    )
    await make_topic(settings, PARTITIONS)
    return settings


@pytest.fixture
async def fetch(database: Database) -> AsyncIterator[Fetch]:
    """A function that queries the test's database as its owner."""
    connection = await asyncpg.connect(
        database.owner, server_settings={"search_path": "execution_events"}
    )
    yield connection.fetch
    await connection.close()


@pytest.fixture
def unused_port() -> int:
    """A free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
