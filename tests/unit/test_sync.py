"""The publisher for threads: interrupts, forks, closing; the contract covers the rest."""

import asyncio
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Self

import pytest

from execution_events import publisher as asynchronous
from execution_events import sync
from execution_events.errors import EventError, RetryableError
from execution_events.publisher.event import Event
from execution_events.settings import Settings
from execution_events.testing import RecordingPublisher
from tests.support.forks import in_child
from tests.support.publisher_contract import EVENT, changed, codes

DEADLINE = 20
WAIT = sync._Call.wait.__code__
mark: ContextVar[str] = ContextVar("mark", default="none")


class Held(RecordingPublisher):
    """A recording publisher that can be delayed, and reports the calls that have begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.marks: list[str] = []
        self.error: Exception | None = None
        self._gate = asyncio.Event()
        self._gate.set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return await super().__aenter__()

    async def publish(self, event: Event) -> None:
        self.marks.append(mark.get())
        await self._pass("publish")
        if self.error is not None:
            raise self.error
        await super().publish(event)

    async def flush(self, timeout: float | None = None) -> None:
        await self._pass("flush")

    async def close(self) -> int:
        self.begun.put("close")
        await super().close()
        return 7

    def hold(self) -> None:
        self._gate.clear()

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._gate.set)

    def await_call(self, call: str) -> None:
        assert self.begun.get(timeout=DEADLINE) == call

    async def _pass(self, call: str) -> None:
        self.begun.put(call)
        await self._gate.wait()


class Publisher(sync.Publisher):
    def __init__(self) -> None:
        super().__init__(Settings())

    def _asynchronous(self, settings: Settings) -> asynchronous.Publisher:
        self.held = Held()
        return self.held


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher() as publisher:
        yield publisher


@pytest.fixture
def held(publisher: Publisher) -> Held:
    return publisher.held


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def element_of(publisher: sync.Publisher) -> sync.Element:
    return publisher.element(
        execution_id="exec-1",
        namespace="n",
        object_name="o",
        elem_type="KubeDAG.init",
        elem_id="job-a-init",
    )


class Interrupter:
    """Ctrl-C for the main thread.

    A signal just before a thread blocks does not wake it, so no-op signals follow.
    """

    def __init__(self) -> None:
        self._delivered = False

    def handle(self, *_: object) -> None:
        self._delivered = True
        raise KeyboardInterrupt

    def early(self) -> None:
        main = threading.main_thread().ident or 0
        deadline = time.monotonic() + DEADLINE
        self._delivered = False
        signal.pthread_kill(main, signal.SIGINT)
        while not self._delivered:
            assert time.monotonic() < deadline
            signal.pthread_kill(main, signal.SIGUSR2)

    def late(self) -> None:
        """Interrupt the main thread once it waits for the result of its call."""
        deadline = time.monotonic() + DEADLINE
        while sys._current_frames()[threading.main_thread().ident or 0].f_code is not WAIT:
            assert time.monotonic() < deadline
        self.early()


@pytest.fixture(autouse=True)
def interrupter() -> Iterator[Interrupter]:
    interrupter = Interrupter()
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, interrupter.handle),
        signal.SIGUSR2: signal.signal(signal.SIGUSR2, lambda *_: None),
    }
    yield interrupter
    for number, handler in before.items():
        signal.signal(number, handler)


def publish_interrupted(
    publisher: Publisher, pool: ThreadPoolExecutor, interrupt: Callable[[], None]
) -> None:
    """Interrupt a call while its event is delayed."""

    def strike() -> None:
        publisher.held.await_call("publish")
        interrupt()

    publisher.held.hold()
    striking = pool.submit(strike)
    with pytest.raises(KeyboardInterrupt):
        publisher.publish(EVENT)
    striking.result()


def closing_of(publisher: Publisher, pool: ThreadPoolExecutor) -> Future[int]:
    """Start closing in another thread; return once calls are no longer accepted."""
    closing = pool.submit(publisher.close)
    deadline = time.monotonic() + DEADLINE
    while publisher._closing is None and not closing.done():
        assert time.monotonic() < deadline
    return closing


@pytest.mark.parametrize("interrupt", [Interrupter.early, Interrupter.late])
def test_an_interrupted_call_loses_no_event(
    publisher: Publisher,
    held: Held,
    pool: ThreadPoolExecutor,
    interrupter: Interrupter,
    interrupt: Callable[[Interrupter], None],
) -> None:
    publish_interrupted(publisher, pool, lambda: interrupt(interrupter))
    assert held.events == []
    closing = closing_of(publisher, pool)
    held.release()
    assert closing.result(DEADLINE) == 7
    assert len(held.events) == 1


def test_closing_waits_for_an_interrupted_call_for_a_bounded_time(
    publisher: Publisher,
    held: Held,
    pool: ThreadPoolExecutor,
    interrupter: Interrupter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sync, "_PUBLISHING_TIMEOUT", 0.01)
    publish_interrupted(publisher, pool, interrupter.early)
    assert publisher.close() == 7


def test_a_failure_after_an_interrupt_is_logged(
    publisher: Publisher,
    held: Held,
    pool: ThreadPoolExecutor,
    interrupter: Interrupter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    held.error = RetryableError("Kafka is unavailable")
    publish_interrupted(publisher, pool, interrupter.late)
    held.release()
    publisher.close()
    assert [record.getMessage() for record in caplog.records] == ["interrupted_call_failed"]


def test_an_interrupt_during_the_start_ends_the_action(
    publisher: Publisher, held: Held, pool: ThreadPoolExecutor, interrupter: Interrupter
) -> None:
    def strike() -> None:
        held.await_call("publish")
        interrupter.early()
        held.await_call("publish")
        held.release()

    held.hold()
    striking = pool.submit(strike)
    with pytest.raises(KeyboardInterrupt), element_of(publisher).action("create"):
        pytest.fail("the body has run")
    striking.result()
    assert codes(held.events) == ["ActionStart", "ActionCancelled"]


def test_an_interrupt_during_the_end_is_propagated_and_loses_nothing(
    publisher: Publisher, held: Held, pool: ThreadPoolExecutor, interrupter: Interrupter
) -> None:
    def strike() -> None:
        held.await_call("publish")
        held.await_call("publish")
        interrupter.early()

    striking = pool.submit(strike)
    with pytest.raises(KeyboardInterrupt), element_of(publisher).action("create"):
        held.hold()
    striking.result()
    held.release()
    publisher.close()
    assert codes(held.events) == ["ActionStart", "SuccessfulFinish"]


def test_an_interrupted_close_continues_and_the_next_returns_its_result(
    publisher: Publisher, held: Held, pool: ThreadPoolExecutor, interrupter: Interrupter
) -> None:
    publish_interrupted(publisher, pool, interrupter.early)

    def strike() -> None:
        closing_begun.wait(DEADLINE)
        interrupter.early()

    closing_begun = threading.Event()
    close = publisher._close

    async def closing() -> int:
        closing_begun.set()
        return await close()

    publisher._close = closing  # type: ignore[method-assign]
    striking = pool.submit(strike)
    with pytest.raises(KeyboardInterrupt):
        publisher.close()
    striking.result()
    held.release()
    assert publisher.close() == 7
    assert publisher.close() == 0
    assert len(held.events) == 1


def test_calls_overtaken_by_closing_are_retryable(
    publisher: Publisher, held: Held, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "_PUBLISHING_TIMEOUT", 0.01)
    held.hold()
    publishing = pool.submit(publisher.publish, EVENT)
    held.await_call("publish")
    flushing = pool.submit(publisher.flush)
    held.await_call("flush")
    assert publisher.close() == 7
    for call in (publishing, flushing):
        with pytest.raises(RetryableError, match="the publisher was closed"):
            call.result(DEADLINE)


def test_closing_ends_the_thread(publisher: Publisher) -> None:
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name == "execution-events-publisher"]

    assert threads() != []
    publisher.close()
    assert threads() == []


def test_concurrent_closes_return_the_number_undelivered(
    publisher: Publisher, pool: ThreadPoolExecutor, interrupter: Interrupter
) -> None:
    publish_interrupted(publisher, pool, interrupter.early)
    closings = [closing_of(publisher, pool) for _ in range(3)]
    publisher.held.release()
    assert {closing.result(DEADLINE) for closing in closings} <= {7, 0}
    assert closings[0].result(DEADLINE) == 7


def test_threads_publish_concurrently_each_in_order(publisher: Publisher, held: Held) -> None:
    threads, events = 8, 50
    barrier = threading.Barrier(threads)

    def work(worker: int) -> None:
        barrier.wait(DEADLINE)
        for number in range(events):
            publisher.publish(changed(elem_id=str(worker), message=str(number)))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    for worker in range(threads):
        own = [event.message for event in held.events if event.elem_id == str(worker)]
        assert own == [str(number) for number in range(events)]


def test_a_thread_does_not_inherit_scopes(publisher: Publisher) -> None:
    element = element_of(publisher)
    with ThreadPoolExecutor(1) as pool, element.action("create"):
        reporting = pool.submit(element.event, "a##A")
        with pytest.raises(EventError, match="action_name"):
            reporting.result()


def test_the_publisher_runs_in_the_context_of_the_caller(publisher: Publisher, held: Held) -> None:
    token = mark.set("span")
    try:
        publisher.publish(EVENT)
    finally:
        mark.reset(token)
    assert held.marks == ["span"]


def test_a_signal_handler_may_publish_during_a_call(
    publisher: Publisher, held: Held, pool: ThreadPoolExecutor
) -> None:
    def handle(*_: object) -> None:
        publisher.publish(changed(message="handler"))

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with publisher._lock:  # as in a call that is about to submit its event
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [event.message for event in held.events] == ["handler"]


CALLS: list[Callable[[sync.Publisher], object]] = [
    lambda publisher: publisher.publish(EVENT),
    lambda publisher: publisher.flush(),
    lambda publisher: publisher.close(),
    lambda publisher: element_of(publisher).event("a##A", action_name="create"),
    lambda publisher: element_of(publisher).action("create").__enter__(),
]


@pytest.mark.parametrize("call", CALLS)
def test_every_call_in_a_forked_child_raises(
    publisher: Publisher, call: Callable[[sync.Publisher], object]
) -> None:
    publisher._lock.acquire()  # as another thread may, at the moment of the fork
    try:
        error = in_child(lambda: str(call(publisher)))
    finally:
        publisher._lock.release()
    assert error == (
        "RuntimeError: the publisher was opened before a fork: open one in this process"
    )
    publisher.publish(EVENT)  # the parent is unaffected
    assert len(publisher.held.events) == 1


def test_a_forked_child_does_not_close_the_publisher_and_can_open_its_own(
    publisher: Publisher, held: Held
) -> None:
    def child() -> str:
        publisher.__exit__(None, None, None)
        with Publisher() as own:
            own.publish(EVENT)
        return str(len(own.held.events))

    assert in_child(child) == "1"
    publisher.publish(EVENT)
    assert len(held.events) == 1


def test_a_publisher_created_before_a_fork_can_be_opened_after_it() -> None:
    made = Publisher()

    def child() -> str:
        with made as own:
            own.publish(EVENT)
        return str(len(made.held.events))

    assert in_child(child) == "1"


def test_an_error_during_opening_is_raised_and_leaves_no_thread() -> None:
    class Away(Held):
        async def __aenter__(self) -> Self:
            raise RetryableError("Kafka is unavailable")

    class AwayPublisher(Publisher):
        def _asynchronous(self, settings: Settings) -> asynchronous.Publisher:
            self.held = Away()
            return self.held

    before = threading.active_count()
    with pytest.raises(RetryableError, match="Kafka is unavailable"), AwayPublisher():
        pytest.fail("the body has run")
    assert threading.active_count() == before
