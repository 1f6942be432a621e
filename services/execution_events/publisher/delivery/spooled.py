"""Delivery through a spool: what `keep` has returned for survives the process."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from execution_events.errors import RetryableError, SpoolCorruptError, SpoolFullError
from execution_events.logs import Logger
from execution_events.publisher.delivery.sender import EVERY_PARTITION, Outgoing, Sender
from execution_events.publisher.delivery.task import Background
from execution_events.publisher.delivery.turn import Changes, exchange
from execution_events.publisher.record import NewRecord
from execution_events.publisher.spool import directory as spool_directory
from execution_events.publisher.spool.spool import Spool
from execution_events.settings import Settings

_T = TypeVar("_T")

_logger = Logger(__name__)

_WINDOW = 5_000
"""Records in memory, taken from the spool and not acknowledged; the others stay on the disk."""
_TURN_BYTES = 512 * 1024
"""Of the new records of one transaction, which fit into an empty spool of the least size."""
_COMPANY = 0.05
"""Seconds that acknowledgements alone wait for new records, to share their transaction."""
_PAUSE = 0.5
"""Seconds until a spool that has failed is tried again."""


class _Kept(NamedTuple):
    record: NewRecord
    durable: asyncio.Future[None]


class SpooledDelivery:
    """Keeps records in a spool and sends them from there; an asynchronous context manager.

    One task makes the spool's turns, in a thread of their own: a turn stores all new records,
    forgets the acknowledged ones and takes the next to send, in one transaction. So callers at the
    same time share one fsync, and a record is sent only once it and its partition are on the disk.

    A partition that waits keeps one record in memory; what follows goes back to the spool, so that
    the window is there for the others. With `accept_partitions`, records of partitions that the
    topic does not have get others before anything is sent.

    It owns `spool` and closes it. A spool that turns out to be damaged is set aside and replaced;
    what was in memory of it is sent before anything of the new one.
    """

    def __init__(
        self, settings: Settings, spool: Spool, *, accept_partitions: bool = False
    ) -> None:
        self._settings = settings
        self._accept_partitions = accept_partitions
        self._new: deque[_Kept] = deque()
        self._storing: list[_Kept] = []
        self._due = asyncio.Event()
        self._worthwhile = asyncio.Event()
        self._moved = asyncio.Event()
        self._turning: Background | None = None
        self._connecting: Background | None = None
        self._retired: list[Sender] = []
        self._failing = False
        self._closed = False
        self._use(spool)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="execution-events-spool")

    async def __aenter__(self) -> Self:
        self._turning = Background(self._turns)
        self._connecting = Background(self._connect)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close(wait=exc is None)

    @property
    def left(self) -> int:
        """How many records wait in the spool; held and refused ones do not count."""
        return self._spool.left

    async def keep(self, record: NewRecord) -> None:
        """Return when `record` is on the disk.

        When the spool or the disk is full it raises `SpoolFullError` or waits, as the setting
        `spool_full` says. Raises `RetryableError` where the spool cannot be written, or was closed
        before; then it is not on the disk.
        """
        if self._closed:
            raise _closed_error()
        kept = _Kept(record, asyncio.get_running_loop().create_future())
        self._new.append(kept)
        self._worthwhile.set()
        self._due.set()
        await kept.durable

    async def flush(self) -> None:
        """Return when Kafka has acknowledged or refused everything that was kept before.

        Raises `RetryableError` when it is closed meanwhile.
        """
        if storing := [kept.durable for kept in (*self._storing, *self._new)]:
            await asyncio.wait(storing)
        spool, last = self._spool, self._spool.last
        while not self._delivered(spool, last):
            if self._closed:
                raise _closed_error()
            await self._moved.wait()

    async def moved(self) -> None:
        """Return when something has been stored or acknowledged."""
        await self._moved.wait()

    async def close(self, *, wait: bool = True) -> int:
        """Wait for what is left, and give how many records stay behind.

        Takes at most `close_timeout`, or nothing without `wait`; then 5 s, and what the disk needs
        for the transaction under way and one more. A cancellation ends the waiting for Kafka, and
        what there is to close is closed all the same. Closing again does nothing.
        """
        if self._closed:
            return 0
        try:
            if wait:
                async with asyncio.timeout(self._settings.publisher.close_timeout):
                    await self.flush()
        except (TimeoutError, RetryableError):
            pass
        finally:
            left = await self._stop()
        return left

    async def _stop(self) -> int:
        if self._closed:
            return 0
        self._closed = True
        try:
            for task in (self._turning, self._connecting):
                if task is not None:
                    await task.stop()
            for sender in (*self._retired, self._sender):
                await sender.close()
        finally:
            left = await self._in_thread(self._close_spool)
            self._thread.shutdown()
            for kept in (*self._storing, *self._new):
                _fail(kept, _closed_error())
            self._note_move()
        if lost := sum(sender.pending for sender in self._retired):
            _logger.error("events of a damaged spool not delivered", events=lost)
        return left + lost

    def _close_spool(self) -> int:
        spool = self._spool
        try:
            exchange(spool, [], self._changes(), 0, None, frozenset(), 0)
        except Exception as error:
            # What stays there will be sent again, and not be counted again.
            _logger.warning("spool not up to date", spool=str(spool.path), error=str(error))
        left = spool.left
        spool.close()
        return left

    def _use(self, spool: Spool) -> None:
        self._sender = Sender(
            self._settings.kafka,
            spool.source,
            acknowledged=partial(self._note_acknowledged, spool),
            refused=partial(self._note_refused, spool),
            expired=partial(self._note_expired, spool),
            waits=partial(self._note_waiting, spool),
        )
        self._spool = spool
        self._damaged = False
        # All up to this sequence are with the sender; the spool knows it a moment earlier.
        self._given = spool.given
        self._acknowledged: list[int] = []
        self._refused: list[tuple[int, str]] = []
        self._expired: list[int] = []
        # By partition: what is not sent now and goes back to the spool.
        self._returned: dict[int, list[int]] = {}
        # What the spool passes over.
        self._passed: frozenset[int] = frozenset()
        self._held = 0
        self._note_held()

    def _note_held(self) -> None:
        held = self._spool.held
        if held > self._held:
            _logger.warning(
                "spooled events are held",
                spool=str(self._spool.path),
                events=held,
                next_step="execution-events spool drain --accept-duplicates",
            )
        self._held = held

    async def _connect(self) -> None:
        await self._sender.until_connected()
        self._due.set()

    async def _turns(self) -> None:
        self._due.set()
        while True:
            # A cancellation in the last turn ends the task here: a set event would not wait.
            await asyncio.sleep(0)
            await self._due.wait()
            self._due.clear()
            if not self._new and not self._may_take():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_COMPANY):
                        await self._worthwhile.wait()
            self._worthwhile.clear()
            try:
                await self._turn_or_replace()
            except Exception as error:
                # Whatever it is, the spool is tried again: its records have no other way out.
                self._note_failure(error)
                await asyncio.sleep(_PAUSE)
                self._due.set()
            else:
                if self._failing:
                    self._failing = False
                    _logger.info("spool works again", spool=str(self._spool.path))
            if self._new or self._may_take():
                self._due.set()
            self._note_move()

    def _may_send(self) -> bool:
        """Whether records may leave the spool: those of a damaged one before come first."""
        return self._sender.partitions > 0 and not any(s.pending for s in self._retired)

    def _goes_on(self) -> bool:
        """Tell if a partition may have records in the spool that need wait no longer."""
        return any(p not in self._sender.reasons for p in (*self._passed, *self._returned))

    def _may_take(self) -> bool:
        """Whether a turn would give records to send."""
        return (
            (self._given < self._spool.last or self._goes_on())
            and self._sender.pending <= _WINDOW // 2
            and self._may_send()
        )

    def _delivered(self, spool: Spool, last: int) -> bool:
        """Whether nothing up to `last` of `spool` is to be sent."""
        if any(sender.pending for sender in self._retired):
            return False
        if spool is not self._spool:
            return True
        # A partition that waits has its first record with the sender.
        oldest = self._sender.oldest
        return self._given >= last and not self._goes_on() and (oldest is None or oldest > last)

    async def _turn_or_replace(self) -> None:
        try:
            if not self._damaged:
                await self._turn()
        except SpoolCorruptError:
            self._damaged = True
        # It stays so until it is replaced: its file may be closed already.
        if self._damaged:
            self._storing = self._storing or self._next_new()
            await self._replace()
        for sender in [sender for sender in self._retired if not sender.pending]:
            await sender.close()
            self._retired.remove(sender)

    async def _turn(self) -> None:
        new = self._storing = self._next_new()
        changes = self._changes()
        passed, partitions = frozenset(self._sender.reasons), self._sender.partitions
        try:
            given, full = await self._in_thread(
                partial(
                    exchange,
                    self._spool,
                    [kept.record for kept in new],
                    changes,
                    _WINDOW - self._sender.pending,
                    self._sender.partition_of if self._may_send() else None,
                    passed,
                    partitions if self._accept_partitions else 0,
                )
            )
        except Exception:
            self._restore(changes)
            raise
        for record in given:
            partition = record.partition
            # Nothing goes before what is on its way back.
            if partition in self._sender.reasons or partition in self._returned:
                self._returned.setdefault(partition, []).append(record.sequence)
                continue
            self._sender.submit(
                partition,
                Outgoing(
                    record.sequence,
                    record.key,
                    record.value,
                    record.traceparent,
                    record.attempted_at,
                ),
            )
        self._passed = passed
        self._accept_partitions = self._accept_partitions and not partitions
        self._note_held()
        self._given = self._spool.given
        if full is not None:
            raise full
        self._storing = []
        for kept in new:
            if not kept.durable.done():
                kept.durable.set_result(None)

    def _changes(self) -> Changes:
        """Take what the spool does not know yet."""
        changes = Changes(
            self._acknowledged,
            self._refused,
            self._expired,
            self._returned,
            dict(self._sender.reasons),
        )
        self._acknowledged, self._refused, self._expired, self._returned = [], [], [], {}
        return changes

    def _restore(self, changes: Changes) -> None:
        """The spool may not know `changes` yet."""
        self._acknowledged = changes.acknowledged + self._acknowledged
        self._refused = changes.refused + self._refused
        self._expired = changes.expired + self._expired
        for partition, sequences in changes.returned.items():
            self._returned[partition] = sequences + self._returned.get(partition, [])

    def _next_new(self) -> list[_Kept]:
        new: list[_Kept] = []
        size = 0
        while self._new and size < _TURN_BYTES:
            kept = self._new.popleft()
            size += len(kept.record.key) + len(kept.record.value)
            new.append(kept)
        return new

    def _note_failure(self, error: Exception) -> None:
        """What this turn did not store has failed, or waits for the next one."""
        if not self._failing:
            self._failing = True
            _logger.error("spool fails", spool=str(self._spool.path), error=str(error))
        if isinstance(error, SpoolFullError) and self._settings.publisher.spool_full == "wait":
            self._store_later()
            return
        if not isinstance(error, RetryableError):
            error = RetryableError(f"{self._spool.path}: {type(error).__name__}")
        failed, self._storing = self._storing, []
        for kept in failed:
            _fail(kept, copy(error))

    def _store_later(self) -> None:
        """Put this turn's records back in line, and forget all whose callers have gone."""
        again, self._storing = self._storing, []
        self._new = deque(kept for kept in (*again, *self._new) if not kept.durable.cancelled())

    async def _replace(self) -> None:
        """Go on with another spool, and what this turn was to store.

        What was in memory of the damaged one is still sent.
        """
        spool = await self._in_thread(
            partial(spool_directory.replace, self._spool, self._settings.publisher.spool_max_bytes)
        )
        damaged, connecting = self._sender, self._connecting
        self._use(spool)
        self._retired.append(damaged)
        self._store_later()
        self._connecting = Background(self._connect)
        if connecting is not None:
            await connecting.stop()

    def _note_acknowledged(
        self, spool: Spool, records: Sequence[Outgoing], partition: int, base: int
    ) -> None:
        if spool is self._spool:
            self._acknowledged += [record.sequence for record in records]
        self._note_settled()

    def _note_refused(self, spool: Spool, record: Outgoing, detail: str) -> None:
        _logger.error("event refused", spool=str(spool.path), sequence=record.sequence, why=detail)
        if spool is self._spool:
            self._refused.append((record.sequence, detail))
        self._note_settled()

    def _note_expired(self, spool: Spool, record: Outgoing) -> None:
        if spool is not self._spool:
            _logger.error("event_expired", spool=str(spool.path), sequence=record.sequence)
        else:
            self._expired.append(record.sequence)
        self._note_settled()

    def _note_waiting(self, spool: Spool, partition: int) -> None:
        if spool is self._spool and partition != EVERY_PARTITION:
            taken = self._sender.take_back(partition)
            self._returned.setdefault(partition, []).extend(record.sequence for record in taken)
        self._note_settled()

    def _note_settled(self) -> None:
        self._due.set()
        if self._may_take():
            self._worthwhile.set()
        self._note_move()

    def _note_move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        """The result of `call`, which has happened even if the task was cancelled meanwhile.

        Such a cancellation takes effect where the task waits next: the caller has then done with
        the result what there is to do.
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


def _fail(kept: _Kept, error: Exception) -> None:
    if not kept.durable.done():
        kept.durable.set_exception(error)


async def drain(
    settings: Settings,
    spool: Spool,
    *,
    timeout: float,
    progress: Callable[[int], None],
    accept_partitions: bool = False,
) -> int:
    """Send what `spool` has left, and close it; give how many records stay in it.

    With `accept_partitions`, records of partitions that the topic does not have get others.
    Gives up after `timeout` seconds without an acknowledgement. `progress` is told how many
    records have been acknowledged so far.
    """
    async with SpooledDelivery(settings, spool, accept_partitions=accept_partitions) as delivery:
        first = left = delivery.left
        with suppress(TimeoutError):
            while left:
                async with asyncio.timeout(timeout):
                    while delivery.left == left:
                        await delivery.moved()
                left = delivery.left
                progress(max(0, first - left))
        return await delivery.close(wait=False)
