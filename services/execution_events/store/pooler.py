"""Detection of a pooler in transaction mode, in which a session ends with its transaction."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import asyncpg

_ATTEMPTS = 20
_TIMEOUT = 2
"""Seconds to wait for a second session, which a small pool may not have."""


async def shares_sessions(
    connection: asyncpg.Connection, connect: Callable[[], Awaitable[asyncpg.Connection]]
) -> bool:
    """Return whether a pooler gives the connection's session to others between transactions.

    `connect` opens another connection; it is called only behind a pooler.
    """
    session = await _session(connection)
    # A pooler invents the process id that it sends at the login.
    if session == connection.get_server_pid():
        return False
    try:
        async with asyncio.timeout(_TIMEOUT):
            other = await connect()
            try:
                # A pooler mostly gives out the session that was used last, or least recently. Other
                # clients may take it first: at random times, so that two checks find no rhythm.
                for _ in range(_ATTEMPTS):
                    await asyncio.sleep(random.uniform(0, 0.01))  # noqa: S311
                    async with other.transaction():
                        if await _pid(other) == session:
                            return True
                        if await _session(connection) != session:
                            return True
            finally:
                other.terminate()
    except TimeoutError:
        pass
    return False


async def _session(connection: asyncpg.Connection) -> int:
    """Return the id of the session that the connection's next transaction gets."""
    async with connection.transaction():
        return await _pid(connection)


async def _pid(connection: asyncpg.Connection) -> int:
    # Without a name: another session would not have the statement.
    statement = await connection.prepare("SELECT pg_backend_pid()", name="")
    pid: int = await statement.fetchval()
    return pid
