"""Delivery through a spool: delivered records survive the process."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from execution_events.errors import RetryableError, SpoolCorruptError, SpoolFullError
from execution_events.logs import Logger
from execution_events.publisher.delivery.commit import Fetch, commit
from execution_events.publisher.delivery.relay import Relay
from execution_events.publisher.delivery.sender import Sender
from execution_events.publisher.delivery.task import RestartingTask
from execution_events.publisher.record import PendingRecord
from execution_events.publisher.spool import directory as spool_directory
from execution_events.publisher.spool.spool import Spool
from execution_events.settings import KafkaSettings, PublisherSettings

_T = TypeVar("_T")

_log = Logger(__name__)

_COMMIT_BYTES = 512 * 1024
"""Limit of the new records of one transaction; an empty spool of the smallest size holds them."""
_COMMIT_DELAY = 0.05
"""Seconds that acknowledgements wait for new records, to share their transaction."""
_RETRY_DELAY = 0.5
"""Seconds between two attempts to use a spool that fails."""


class _NewRecord(msgspec.Struct, frozen=True, gc=False):
    """A record that is not on the disk yet, and the future of its caller."""

    record: PendingRecord
    durable: asyncio.Future[None]

    def fail(self, error: Exception) -> None:
        if not self.durable.done():
            self.durable.set_exception(error)


class SpooledDelivery:
    """A delivery that keeps records in a spool and sends them from there.

    An asynchronous context manager that owns `spool` and closes it. One task commits to the spool,
    in a thread: a commit stores all new records, deletes acknowledged ones and fetches the next to
    send, in one transaction. Concurrent callers share its fsync, and a record is sent only once it
    and its partition are on the disk.

    A damaged spool is set aside and replaced; its records in memory are sent before any of the new
    one. With `reassign_partitions`, records of partitions that the topic does not have are assigned
    to others before anything is sent.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: PublisherSettings,
        spool: Spool,
        *,
        reassign_partitions: bool = False,
    ) -> None:
        self._kafka = kafka
        self._settings = settings
        self._new: deque[_NewRecord] = deque()
        self._storing: list[_NewRecord] = []
        self._commit_due = asyncio.Event()
        # Set as well when a commit would do more than delete acknowledged records.
        self._commit_urgent = asyncio.Event()
        self._progress = asyncio.Event()
        self._committing: RestartingTask | None = None
        self._connecting: RestartingTask | None = None
        self._retired: list[Relay] = []
        self._held = 0
        self._damaged = self._failing = self._closed = False
        self._relay = self._open_relay(spool, reassign_partitions)
        self._warn_of_held()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="execution-events-spool")

    async def __aenter__(self) -> Self:
        self._committing = RestartingTask(self._run_commits)
        self._connecting = RestartingTask(self._connect)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close(wait=exc is None)

    @property
    def pending(self) -> int:
        """The number of records to send; held and refused ones do not count."""
        return self._spool.pending

    async def deliver(self, record: PendingRecord) -> None:
        """Return when `record` is on the disk.

        When the spool or the disk is full, raises `SpoolFullError` or waits, by the setting
        `spool_full`. Raises `RetryableError` when the spool cannot be written or is closed first;
        then the record is not on the disk.
        """
        if self._closed:
            raise _closed_error()
        new = _NewRecord(record, asyncio.get_running_loop().create_future())
        self._new.append(new)
        self._commit_urgent.set()
        self._commit_due.set()
        await new.durable

    async def flush(self) -> None:
        """Return when Kafka has acknowledged or refused every record delivered before.

        Raises `RetryableError` if the delivery is closed meanwhile.
        """
        if storing := [new.durable for new in (*self._storing, *self._new)]:
            await asyncio.wait(storing)
        spool, last = self._spool, self._spool.last
        while not self._is_delivered(spool, last):
            if self._closed:
                raise _closed_error()
            await self._progress.wait()

    async def progress(self) -> None:
        """Return when something has been stored or acknowledged."""
        await self._progress.wait()

    async def close(self, *, wait: bool = True) -> int:
        """Wait for pending records and return how many remain.

        Takes at most `close_timeout`, or no time without `wait`; then 5 s, and the time that the
        disk needs for the current transaction and one more. A cancellation ends only the
        wait for Kafka; everything is still closed. Closing again does nothing.
        """
        if self._closed:
            return 0
        try:
            if wait:
                async with asyncio.timeout(self._settings.close_timeout):
                    await self.flush()
        except (TimeoutError, RetryableError):
            pass
        finally:
            pending = await self._stop()
        return pending

    @property
    def _spool(self) -> Spool:
        return self._relay.spool

    @property
    def _sender(self) -> Sender:
        return self._relay.sender

    async def _stop(self) -> int:
        if self._closed:
            return 0
        self._closed = True
        try:
            for task in (self._committing, self._connecting):
                if task is not None:
                    await task.stop()
            for relay in (*self._retired, self._relay):
                await relay.sender.close()
        finally:
            pending = await self._in_thread(self._close_spool)
            self._thread.shutdown()
            for new in (*self._storing, *self._new):
                new.fail(_closed_error())
            self._note_progress()
        if undelivered := sum(relay.sender.pending for relay in self._retired):
            _log.error("damaged_spool_undelivered", events=undelivered)
        return pending + undelivered

    def _close_spool(self) -> int:
        spool = self._spool
        try:
            commit(spool, [], self._relay.take_outcomes(), Fetch())
        except Exception as error:
            # Records that stay there by mistake are sent again and not counted again.
            _log.warning("spool_update_failed", path=str(spool.path), error=str(error))
        pending = spool.pending
        spool.close()
        return pending

    def _open_relay(self, spool: Spool, reassign_partitions: bool) -> Relay:
        return Relay(
            self._kafka,
            spool,
            self._on_progress,
            reassign_partitions=reassign_partitions,
        )

    def _warn_of_held(self) -> None:
        held = self._spool.held
        if held > self._held:
            _log.warning(
                "events_held",
                path=str(self._spool.path),
                events=held,
                next_step="execution-events spool drain --accept-duplicates",
            )
        self._held = held

    async def _connect(self) -> None:
        await self._sender.until_connected()
        self._commit_due.set()

    async def _run_commits(self) -> None:
        self._commit_due.set()
        while True:
            # A cancellation in the last commit ends the task here: a set event would not wait.
            await asyncio.sleep(0)
            await self._commit_due.wait()
            self._commit_due.clear()
            if not self._new and not self._may_fetch():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_COMMIT_DELAY):
                        await self._commit_urgent.wait()
            self._commit_urgent.clear()
            try:
                await self._commit_or_replace()
            except Exception as error:
                # Any error is retried: the records of a spool have no other way out.
                self._on_failure(error)
                await asyncio.sleep(_RETRY_DELAY)
                self._commit_due.set()
            else:
                if self._failing:
                    self._failing = False
                    _log.info("spool_recovered", path=str(self._spool.path))
            if self._new or self._may_fetch():
                self._commit_due.set()
            self._note_progress()

    def _may_send(self) -> bool:
        """Return whether records may leave the spool: those of a damaged one come first."""
        return not any(relay.sender.pending for relay in self._retired)

    def _may_fetch(self) -> bool:
        return self._relay.may_fetch() and self._may_send()

    def _is_delivered(self, spool: Spool, last: int) -> bool:
        """Return whether nothing up to `last` of `spool` remains to be sent."""
        if not self._may_send():
            return False
        return spool is not self._spool or self._relay.is_delivered(last)

    async def _commit_or_replace(self) -> None:
        try:
            if not self._damaged:
                await self._commit()
        except SpoolCorruptError:
            self._damaged = True
        # It stays damaged until it is replaced: its file may be closed already.
        if self._damaged:
            self._storing = self._storing or self._take_new()
            await self._replace()
        for relay in [relay for relay in self._retired if not relay.sender.pending]:
            await relay.sender.close()
            self._retired.remove(relay)

    async def _commit(self) -> None:
        relay = self._relay
        new = self._storing = self._take_new()
        outcomes = relay.take_outcomes()
        fetch = relay.fetch(sending=self._may_send())
        try:
            fetched, full = await self._in_thread(
                partial(commit, relay.spool, [one.record for one in new], outcomes, fetch)
            )
        except Exception:
            relay.restore_outcomes(outcomes)
            raise
        relay.submit(fetched, fetch)
        self._warn_of_held()
        if full is not None:
            raise full
        self._storing = []
        for one in new:
            if not one.durable.done():
                one.durable.set_result(None)

    def _take_new(self) -> list[_NewRecord]:
        taken: list[_NewRecord] = []
        size = 0
        while self._new and size < _COMMIT_BYTES:
            new = self._new.popleft()
            size += len(new.record.key) + len(new.record.value)
            taken.append(new)
        return taken

    def _on_failure(self, error: Exception) -> None:
        """Fail the callers of a commit that failed, or keep their records for the next one."""
        if not self._failing:
            self._failing = True
            _log.error("spool_failed", path=str(self._spool.path), error=str(error))
        if isinstance(error, SpoolFullError) and self._settings.spool_full == "wait":
            self._store_later()
            return
        if not isinstance(error, RetryableError):
            error = RetryableError(f"{self._spool.path}: {type(error).__name__}")
        failed, self._storing = self._storing, []
        for new in failed:
            new.fail(copy(error))

    def _store_later(self) -> None:
        """Return the records of this commit to the queue, and drop all whose callers have gone."""
        waiting = (*self._storing, *self._new)
        self._storing = []
        self._new = deque(new for new in waiting if not new.durable.cancelled())

    async def _replace(self) -> None:
        """Set the damaged spool aside and continue with another one."""
        spool = await self._in_thread(
            partial(spool_directory.replace, self._spool, self._settings.spool_max_bytes)
        )
        damaged, connecting = self._relay, self._connecting
        damaged.retire()
        self._retired.append(damaged)
        self._relay = self._open_relay(spool, damaged.reassign_partitions)
        self._damaged = False
        self._held = 0
        self._warn_of_held()
        self._store_later()
        self._connecting = RestartingTask(self._connect)
        if connecting is not None:
            await connecting.stop()

    def _on_progress(self) -> None:
        self._commit_due.set()
        if self._may_fetch():
            self._commit_urgent.set()
        self._note_progress()

    def _note_progress(self) -> None:
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        """Return the result of `call`, which completes even if the task is cancelled meanwhile.

        The cancellation takes effect where the task waits next, after the caller has used the
        result.
        """
        done = asyncio.get_running_loop().run_in_executor(self._thread, call)
        cancelled = False
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError:
                cancelled = True
        task = asyncio.current_task()
        if cancelled and task is not None:
            task.uncancel()
            task.cancel()
        return done.result()


def _closed_error() -> RetryableError:
    return RetryableError("the publisher was closed")
