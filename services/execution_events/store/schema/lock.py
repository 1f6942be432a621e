"""The lock of `schema_version`: one migration at a time, which nobody waits behind for long."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import asyncpg

from execution_events.errors import RetryableError
from execution_events.logs import Logger
from execution_events.store.sql import load_queries

_log = Logger(__name__)

_ROLES = load_queries("roles")
_SCHEMA = load_queries("schema")

_PAUSE = 1
"""Seconds between two attempts, in which the statements that queued behind one are executed."""
_TIMEOUT = 60
_OPS_TIMEOUT = timedelta(seconds=10)
"""Time for which a session of operators may block a migration; it is ended then."""

_T = TypeVar("_T")


async def run_locked(connection: asyncpg.Connection, step: Callable[[], Awaitable[_T]]) -> _T:
    """Run `step` in a transaction that excludes other migrations; return its result.

    It is begun anew when another session has held a lock that it needs for two seconds, for at most
    a minute. Then raises `RetryableError`, which names these sessions.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _TIMEOUT
    while True:
        try:
            async with connection.transaction():
                await connection.execute(_SCHEMA["lock_schema_version"])
                return await step()
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if loop.time() >= deadline:
                sessions = await _blockers(connection)
                raise RetryableError(
                    f"other sessions hold locks that the migration needs: {sessions}; end them with"
                    " `SELECT pg_terminate_backend(pid)`, or try again later",
                    error.sqlstate or "55P03",
                ) from error
            for session in await connection.fetch(_ROLES["end_ops_blockers"], _OPS_TIMEOUT):
                _log.warning("blocking_session_ended", **session)
        await asyncio.sleep(_PAUSE)


async def _blockers(connection: asyncpg.Connection) -> str:
    sessions = await connection.fetch(_ROLES["blockers"])
    return ", ".join(f"pid {pid} ({user}, {name or 'unnamed'})" for pid, user, name in sessions)
