"""The publisher for threads, with the names and guarantees of the asynchronous one.

with Publisher.from_settings() as publisher:
    element = publisher.element(execution_id=…, …)
    with element.action("create"):
        element.event("镜像拉取##PullImage", "拉取镜像. ## Pulling image.")
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

from execution_events import publisher as asynchronous
from execution_events import settings as settings_module
from execution_events.errors import RetryableError
from execution_events.events import NORMAL
from execution_events.logs import Logger
from execution_events.publisher.element import ElementIdentity, Scope, Subject, note_unpublished
from execution_events.publisher.event import Event
from execution_events.publisher.lifecycle import describe
from execution_events.settings import Settings

_T = TypeVar("_T")

_log = Logger(__name__)

_PUBLISHING_TIMEOUT = 10
"""Seconds that closing waits for calls that are still publishing, including interrupted ones."""
_STOP_TIMEOUT = 10
"""Seconds that the thread, a daemon, may take to end after closing."""


class Publisher:
    """A publisher of events; a context manager. Thread-safe.

    Runs an asynchronous publisher in its own thread, with the same guarantees. A KeyboardInterrupt,
    or another exception of a signal handler, ends a call but not its work: the event is still
    published, and `close` waits for it.

    Belongs to the process that opened it: after a fork, open another publisher. In the child every
    call raises a RuntimeError, and leaving the `with` block does nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._publisher = self._asynchronous(settings)
        # Reentrant: a signal handler may publish during a call.
        self._lock = threading.RLock()
        self._thread: _LoopThread | None = None
        self._closing: _Call[int] | None = None
        self._publishing: set[asyncio.Task[None] | None] = set()
        self._process = os.getpid()

    @classmethod
    def from_settings(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return a publisher with the settings of `environ`, by default `os.environ`.

        Raises `SettingsError`, which names the wrong variable.
        """
        return cls(settings_module.load(os.environ if environ is None else environ))

    def __enter__(self) -> Self:
        thread = _LoopThread()
        try:
            opening = _Call(self._publisher.__aenter__)
            thread.submit(opening)
            opening.wait()
            opening.result()
        except BaseException:
            thread.stop()
            raise
        self._process = os.getpid()
        self._thread, self._closing = thread, None
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process == os.getpid():
            self.close()

    def element(
        self,
        *,
        execution_id: str,
        namespace: str,
        object_name: str,
        elem_type: str,
        elem_id: str,
        object_namespace: str | None = None,
    ) -> "Element":
        """Return an element of an execution; its actions and events use this publisher."""
        return Element(
            self,
            execution_id=execution_id,
            namespace=namespace,
            object_name=object_name,
            elem_type=elem_type,
            elem_id=elem_id,
            object_namespace=object_namespace,
        )

    def publish(self, event: Event) -> None:
        """Return when `event` is durable.

        Raises `EventError` for an event outside the bounds, and `RetryableError` when it cannot be
        made durable.
        """
        self._run(_Call(lambda: self._publish(event)))

    def flush(self, timeout: float | None = None) -> None:
        """Return when Kafka has acknowledged every event published before.

        Raises `RetryableError` after `timeout` seconds; the events remain pending.
        """
        self._run(_Call(lambda: self._publisher.flush(timeout)))

    def close(self) -> int:
        """Deliver pending events for a bounded time, then stop.

        Returns the number of events not delivered. Calls of other threads that are still publishing
        after 10 s raise `RetryableError`. Closing again does nothing.
        """
        self._check_process()
        with self._lock:
            thread = self._thread
            if thread is None:
                return 0
            closing = self._closing
            if closing is None:
                closing = _Call(self._close)
                # In this order: another thread that sees it may wait for it at once.
                thread.submit(closing)
                self._closing = closing
        closing.wait()
        thread.stop()
        self._thread = None
        return closing.result()

    # These two run in the loop's thread, where no interrupt can separate their steps.

    async def _publish(self, event: Event) -> None:
        task = asyncio.current_task()
        self._publishing.add(task)
        try:
            await self._publisher.publish(event)
        finally:
            self._publishing.discard(task)

    async def _close(self) -> int:
        publishing = [task for task in self._publishing if task is not None]
        if publishing:
            await asyncio.wait(publishing, timeout=_PUBLISHING_TIMEOUT)
        return await self._publisher.close()

    def _run(self, call: "_Call[None]") -> None:
        self._check_process()
        try:
            with self._lock:
                if self._thread is None or self._closing is not None:
                    raise RuntimeError("the publisher is not open")
                self._thread.submit(call)
            call.wait()
        except BaseException:
            call.abandon()
            raise
        call.result()

    def _check_process(self) -> None:
        # Before the lock, which another thread of the parent may have held during the fork.
        if self._process != os.getpid():
            raise RuntimeError("the publisher was opened before a fork: open one in this process")

    def _asynchronous(self, settings: Settings) -> asynchronous.Publisher:
        return asynchronous.Publisher(settings)


class Element:
    """An element of an execution, whose actions and events are published."""

    def __init__(self, publisher: Publisher, **identity: Unpack[ElementIdentity]) -> None:
        self._publisher = publisher
        self._subject = Subject(identity)

    def action(self, name: str) -> "Action":
        """Return the scope of an action, for `with`."""
        return Action(self._publisher, Scope(self._subject, name))

    def event(
        self,
        reason: str,
        message: str = "",
        *,
        type: str = NORMAL,  # noqa: A002
        action_name: str | None = None,
        event_name: str | None = None,
    ) -> None:
        """Publish an event: reason `<zh>##<CamelCase>`, message `<zh> ## <en>`.

        Events with the same texts are recurrences of one event, from any process; with
        `event_name`, those with the same name are.

        Its action is `action_name`, or else the innermost scope of this element that this thread
        has entered; a thread does not inherit the scopes of the one that started it. Raises
        `EventError` without a scope, and the errors of `publish`.
        """
        self._publisher.publish(self._subject.event(reason, message, type, action_name, event_name))


class Action:
    """The scope of an action: a context manager.

    ActionStart is durable before the body runs. When the scope is left, the event of its end is
    durable: SuccessfulFinish; ActionTimeout for a TimeoutError; ActionCancelled for
    KeyboardInterrupt, SystemExit, GeneratorExit and asyncio's cancellation; ActionFailed for all
    other exceptions. The exception is always propagated. If the event of the end cannot be
    published, the exception gets a note and an error is logged; without an exception, the
    publisher's error is raised. An interrupt during the publishing of ActionStart ends the action
    with ActionCancelled.
    """

    def __init__(self, publisher: Publisher, scope: Scope) -> None:
        self._publisher = publisher
        self._scope = scope

    def __enter__(self) -> Self:
        try:
            self._publisher.publish(self._scope.start())
            self._scope.enter()
        except Exception:
            raise
        except BaseException as interrupt:
            self.__exit__(type(interrupt), interrupt, interrupt.__traceback__)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.leave()
        event = self._scope.end(error)
        try:
            self._publisher.publish(event)
        except Exception as failure:
            if error is None:
                raise
            note_unpublished(event, failure, error)

    def event(
        self,
        reason: str,
        message: str = "",
        *,
        type: str = NORMAL,  # noqa: A002
        event_name: str | None = None,
    ) -> None:
        """Publish an event of this action, like `Element.event`."""
        scope = self._scope
        self._publisher.publish(
            scope.subject.event(reason, message, type, scope.action_name, event_name)
        )

    def retry(self, error: BaseException | None = None) -> None:
        """Publish ActionRetry, a Warning, with the error that caused the retry."""
        self._publisher.publish(self._scope.retry(error))


class _Call(Generic[_T]):
    """A call that runs in the loop's thread while other threads wait for its result.

    Not a `concurrent.futures.Future`: an interrupt at the wrong moment leaves its lock held, and
    the loop blocks on it. Here each waiting thread has a plain lock of its own.
    """

    def __init__(self, function: Callable[[], Coroutine[Any, Any, _T]]) -> None:
        self._function = function
        self._task: asyncio.Task[_T] | None = None
        self._waiting: list[threading.Lock] = []
        self._ended = self._abandoned = False

    def start(self) -> None:
        """Start the call; must run in the loop."""
        self._task = asyncio.ensure_future(self._function())
        self._task.add_done_callback(self._end)

    def wait(self) -> None:
        """Return when the call has ended."""
        ended = threading.Lock()
        ended.acquire()
        self._waiting.append(ended)
        if not self._ended:
            ended.acquire()

    def result(self) -> _T:
        """Return or raise the result of a call that has ended."""
        assert self._task is not None  # noqa: S101
        try:
            return self._task.result()
        except asyncio.CancelledError:
            raise RetryableError("the publisher was closed before the call ended") from None

    def abandon(self) -> None:
        """Log a failure of the call, because its caller is gone."""
        self._abandoned = True
        if self._ended:
            self._log_failure()

    def _end(self, task: asyncio.Task[_T]) -> None:
        self._ended = True
        for waiting in self._waiting:
            waiting.release()
        if self._abandoned:
            self._log_failure()

    def _log_failure(self) -> None:
        try:
            self.result()
        except Exception as error:
            _log.error("interrupted_call_failed", error=describe(error))


class _LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(
            target=self._run, name="execution-events-publisher", daemon=True
        )
        self._thread.start()

    def submit(self, call: _Call[Any]) -> None:
        """Start `call` in the loop, after earlier ones, with this thread's context variables."""
        self._loop.call_soon_threadsafe(call.start)

    def stop(self) -> None:
        """Cancel running calls and wait for the thread for a bounded time; may be repeated."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOP_TIMEOUT)
        if self._thread.is_alive():
            _log.error("publisher_thread_stuck", seconds=_STOP_TIMEOUT)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._stop.wait())
