"""A health check of PostgreSQL over a connection of its own."""

from types import TracebackType
from typing import Self

import asyncpg

from execution_events.errors import RetryableError
from execution_events.store.connection import address_of, open_session, translated_errors
from execution_events.store.schema.migrate import require_compatible
from execution_events.store.sessions import COMMAND

_APPLICATION = "execution-events probe"
_READ_ONLY = "SELECT current_setting('transaction_read_only')::boolean"


class DatabaseProbe:
    """The health check of a service; an asynchronous context manager."""

    def __init__(self, database_url: str, *, writes: bool, prepares: bool = True) -> None:
        self.address = address_of(database_url)
        self._database_url = database_url
        self._writes = writes
        self._prepares = prepares
        self._connection: asyncpg.Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._drop()

    async def check(self) -> None:
        """Raise `RetryableError` or `HaltError` unless the database answers with a current schema.

        A read-only server is an error for a service that `writes`. Cancellation leaves no
        connection open.
        """
        try:
            with translated_errors(self.address):
                if self._connection is None or self._connection.is_closed():
                    self._connection = await open_session(
                        self._database_url, _APPLICATION, COMMAND, prepares=self._prepares
                    )
                async with self._connection.transaction():
                    read_only = await self._connection.fetchval(_READ_ONLY)
                    await require_compatible(self._connection)
        except BaseException:
            self._drop()
            raise
        if read_only and self._writes:
            raise RetryableError(f"PostgreSQL at {self.address} is read-only", "25006")

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
