"""Reports of consumers on their partitions, for `ops.pipeline_v1`."""

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

import asyncpg

from execution_events.store.connection import address_of, open_session, translated_errors
from execution_events.store.sessions import REPORTS
from execution_events.store.sql import load_queries

_REPORT_PARTITIONS = load_queries("pipeline")["report_partitions"]

_APPLICATION = "execution-events reports"
_COMMAND_TIMEOUT = 10
"""Seconds for one report on the client's side; the server's timeout is a little shorter."""


class PartitionReport(NamedTuple):
    """A partition's state: the end of its log, seen `age` seconds ago, and why it is halted.

    None: the end is not known; the partition is not halted.
    """

    partition: int
    log_end_offset: int | None
    age: float | None
    halted: str | None


class ReportWriter:
    """The writer of one consumer's reports; an asynchronous context manager.

    It has a connection of its own, so that a report that waits delays no batch.
    """

    def __init__(self, database_url: str, topic: str, consumer: str) -> None:
        self._database_url = database_url
        self._address = address_of(database_url)
        self._topic = topic
        self._consumer = consumer
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

    async def write(self, reports: Sequence[PartitionReport]) -> None:
        """Replace the stored reports of these partitions, in one transaction.

        Raises `RetryableError` if PostgreSQL is unavailable and `HaltError` for other errors.
        Cancellation leaves no connection open.
        """
        try:
            with translated_errors(self._address):
                if self._connection is None or self._connection.is_closed():
                    self._connection = await open_session(
                        self._database_url,
                        _APPLICATION,
                        REPORTS,
                        command_timeout=_COMMAND_TIMEOUT,
                    )
                columns = [list(column) for column in zip(*reports, strict=True)]
                await self._connection.execute(
                    _REPORT_PARTITIONS, self._topic, self._consumer, *columns
                )
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
