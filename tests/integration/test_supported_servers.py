"""Only PostgreSQL 15 to 18 with UTF-8 is used; others are refused before the first statement."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest

from execution_events.errors import HaltError
from execution_events.store.probe import DatabaseProbe
from execution_events.store.read.events import EventReader
from execution_events.store.write.batches import BatchWriter
from execution_events.store.write.dead_letters import DeadLetters
from tests.support import databases
from tests.support.configuration import configured
from tests.support.databases import Database, migrate_as_owner
from tests.support.processes import environment, run_cli
from tests.support.servers import Servers

STATEMENTS = (b"Q", b"P")
"""The messages of the client that bring a statement."""


async def _migrate(database: Database) -> None:
    await migrate_as_owner(database)


async def _consumer(database: Database) -> None:
    async with BatchWriter(database.writer, "topic") as writer:
        await writer.connect()


async def _reader(database: Database) -> None:
    async with EventReader.open(database.reader) as reader:
        await reader.check()


async def _probe(database: Database) -> None:
    async with DatabaseProbe(database.writer, writes=True) as probe:
        await probe.check()


async def _dead_letters(database: Database) -> None:
    async with DeadLetters.open(database.writer):
        pass


CLIENTS = [_migrate, _consumer, _reader, _probe, _dead_letters]
Client = Callable[[Database], Awaitable[None]]


@asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close it at the end, whatever the peer has done."""
    with suppress(ConnectionError):
        try:
            yield
        finally:
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def claiming(database_url: str, version: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Yield the address of a proxy to a server that claims another version.

    The list grows by the type of each message of a client after its first one.
    """
    target = urlsplit(database_url)
    kinds: list[bytes] = []
    tasks: set[asyncio.Task[None]] = set()

    async def accept(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(target.hostname, target.port)
        # The first message has no type.
        to_server.write(head := await source.readexactly(4))
        to_server.write(await source.readexactly(int.from_bytes(head) - 4))

        async def ask() -> None:
            async with closing(to_server):
                while kind := await source.read(1):
                    to_server.write(kind + (head := await source.readexactly(4)))
                    to_server.write(await source.readexactly(int.from_bytes(head) - 4))
                    kinds.append(kind)

        async def answer() -> None:
            async with closing(sink):
                while kind := await server.read(1):
                    head = await server.readexactly(4)
                    body = await server.readexactly(int.from_bytes(head) - 4)
                    if kind == b"S" and body.startswith(b"server_version\0"):
                        body = f"server_version\0{version}\0".encode()
                    sink.write(kind + (len(body) + 4).to_bytes(4) + body)

        tasks.update(asyncio.create_task(pump) for pump in (ask(), answer()))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    credentials = target.netloc.rpartition("@")[0]
    try:
        netloc = f"{credentials}@127.0.0.1:{port}"
        yield target._replace(netloc=netloc, query="sslmode=disable").geturl(), kinds
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("version", ["14.18", "19.0", "19beta1", "9.6.24"])
async def test_an_unsupported_version_is_refused_before_the_first_statement(
    database: Database, client: Client, version: str
) -> None:
    async with claiming(database.owner, version) as (url, kinds):
        major = re.split(r"\D", version)[0]
        expected = (
            f"the database is on PostgreSQL {major}, which this version of execution-events"
            " does not support: use PostgreSQL 15 to 18"
        )
        with pytest.raises(HaltError, match=f"^{expected}$"):
            await client(Database(url, url, url, url, url))
        assert kinds
        assert not set(kinds) & set(STATEMENTS)


@pytest.mark.parametrize("version", ["15.0", "16.9 (Debian 16.9-1.pgdg120+1)", "17rc1", "18.6"])
async def test_a_supported_version_is_used(database: Database, version: str) -> None:
    async with claiming(database.owner, version) as (url, kinds):
        await _consumer(Database(url, url, url, url, url))
        assert set(kinds) & set(STATEMENTS)


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
async def other_encoding(
    request: pytest.FixtureRequest, servers: Servers
) -> AsyncIterator[tuple[str, Database]]:
    """An empty database with an encoding that cannot hold every text."""
    name = f"execution_events_encoding_{secrets.token_hex(4)}"
    async with databases.empty(servers.administrator_url):  # creates the owner
        async with databases.administrator(servers.administrator_url) as administrator:
            await administrator.execute(
                f'CREATE DATABASE "{name}" OWNER "{databases.OWNER}" TEMPLATE template0'
                f" ENCODING '{request.param}' LOCALE 'C'"
            )
        yield request.param, databases.urls(servers.administrator_url, name)
        await databases.drop(servers.administrator_url, name)


async def test_another_encoding_is_refused(other_encoding: tuple[str, Database]) -> None:
    encoding, database = other_encoding
    expected = f"the database has the encoding {encoding}, supported is UTF8 alone: create one"
    owner = Database(*[database.owner] * 5)
    for client in CLIENTS:
        with pytest.raises(HaltError, match=expected):
            await client(owner)
    env = environment(configured(database_url=database.owner))
    assert await run_cli("migrate", env=env, code=1) == ""
    async with databases.administrator(database.owner) as connection:
        assert await connection.fetchval("SELECT to_regnamespace('execution_events')") is None
