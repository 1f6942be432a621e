"""The moments at which the proxy can hold a real PostgreSQL session."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from execution_events.store.connection import fetch_one
from tests.faults.protocol import Messages, Moment, Session
from tests.faults.proxy import Proxy
from tests.support.databases import Database

STARTUP = (8).to_bytes(4) + (3 << 16).to_bytes(4)
TLS_REQUEST = (8).to_bytes(4) + (80877103).to_bytes(4)


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + (len(body) + 4).to_bytes(4) + body


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_messages_are_found_in_pieces_of_any_size(size: int) -> None:
    def split(stream: bytes, *, from_client: bool) -> list[tuple[bytes, bytes]]:
        messages = Messages(from_client=from_client)
        return [
            (kind, body)
            for at in range(0, len(stream), size)
            for kind, body, _ in messages.feed(stream[at : at + size])
        ]

    sent = TLS_REQUEST + STARTUP + message(b"Q", b"BEGIN\0") + message(b"H")
    assert split(sent, from_client=True)[2:] == [(b"Q", b"BEGIN\0"), (b"H", b"")]
    received = b"N" + message(b"R", b"\0\0\0\0") + message(b"S", b"a\0b\0") + message(b"Z", b"I")
    assert split(received, from_client=False) == [
        (b"R", b"\0\0\0\0"),
        (b"S", b"a\0b\0"),
        (b"Z", b"I"),
    ]


def test_moments_come_only_after_a_statement_of_the_transaction_was_executed() -> None:
    session = Session()
    session.receives(b"N" + message(b"R", b"\0\0\0\0") + message(b"Z", b"I"))
    session.sends(STARTUP + message(b"P") + message(b"E"))
    assert session.receives(message(b"1") + message(b"Z", b"I")) == {}
    assert session.receives(message(b"Z", b"T") + message(b"1")) == {}
    assert session.sends(message(b"c") + message(b"E")) == {}
    assert session.receives(message(b"1")) == {Moment.PARSED: 0}
    assert session.receives(message(b"C") + message(b"Z", b"T")) == {Moment.EXECUTED: 5}
    assert session.sends(message(b"d", b"1") + message(b"c")) == {Moment.COPY: 6}
    assert session.sends(message(b"d", b"1") + message(b"c")[:2]) == {}
    assert session.sends(message(b"c")[2:]) == {Moment.COPY: 0}
    assert session.receives(message(b"Z", b"I") + message(b"1")) == {}
    assert session.sends(message(b"c")) == {}


class Client:
    """A session that stores rows through a proxy, like a consumer, and a session to observe it."""

    def __init__(self, proxy: Proxy, url: str, observer: asyncpg.Connection) -> None:
        self.proxy = proxy
        self._url = url
        self._observer = observer

    async def store(self) -> None:
        connection = await asyncpg.connect(self._url)
        try:
            async with connection.transaction():
                await connection.fetch("SELECT $1::int", 1)
                await connection.fetch("SELECT $1::text", "a")
                await connection.copy_records_to_table("copied", records=[(1,)])
        finally:
            await connection.close()

    async def state(self, port: int) -> tuple[str, str, str]:
        row = await fetch_one(
            self._observer,
            "SELECT state, wait_event, query FROM pg_stat_activity WHERE client_port = $1",
            port,
        )
        return tuple(row)


@pytest.fixture
async def client(database: Database) -> AsyncIterator[Client]:
    parts = urlsplit(database.owner)
    assert parts.port is not None
    observer = await asyncpg.connect(database.owner)
    await observer.execute("CREATE TABLE public.copied (number integer)")
    async with Proxy(parts.port, sessions=True) as proxy:
        credentials = parts.netloc.rpartition("@")[0]
        url = urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{proxy.port}"))
        yield Client(proxy, url, observer)
    await observer.close()


STATES = {
    Moment.COPY: ("active", "COPY"),
    Moment.PARSED: ("active", "SELECT $1::text"),
    Moment.EXECUTED: ("idle in transaction", "SELECT $1::int"),
}


@pytest.mark.parametrize("moment", Moment)
async def test_a_session_is_held_at_its_moment(client: Client, moment: Moment) -> None:
    state, query = STATES[moment]
    async with asyncio.timeout(30):
        storing = asyncio.create_task(client.store())
        async with client.proxy.held_at(moment) as port:

            async def waits() -> bool:
                found = await client.state(port)
                return found[:2] == (state, "ClientRead") and found[2].startswith(query)

            await until(waits)
            assert not storing.done()
        await storing


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.02)
