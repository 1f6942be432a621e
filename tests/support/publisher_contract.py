"""The contract of every publisher, real or recording, asynchronous or for threads.

A test module derives a class from `PublisherContract` with a fixture `case`. The tests use the
asynchronous interface; `Threaded` adapts a publisher for threads to it.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar
from weakref import WeakKeyDictionary

import msgspec
import pytest

from execution_events import sync
from execution_events.errors import EventError
from execution_events.events import Occurrence
from execution_events.publisher.event import Event

_P = ParamSpec("_P")
_T = TypeVar("_T")


class AnyAction(Protocol):
    """The interface of `publisher.Action`."""

    async def __aenter__(self) -> Any: ...
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    async def event(
        self,
        reason: str,
        message: str = "",
        *,
        type: str = "Normal",  # noqa: A002
        event_name: str | None = None,
    ) -> None: ...
    async def retry(self, error: BaseException | None = None) -> None: ...


class AnyElement(Protocol):
    """The interface of `publisher.Element`."""

    def action(self, name: str) -> AnyAction: ...
    async def event(
        self,
        reason: str,
        message: str = "",
        *,
        type: str = "Normal",  # noqa: A002
        action_name: str | None = None,
        event_name: str | None = None,
    ) -> None: ...


class AnyPublisher(Protocol):
    """The interface of `publisher.Publisher`."""

    async def __aenter__(self) -> Any: ...
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def element(
        self,
        *,
        execution_id: str,
        namespace: str,
        object_name: str,
        elem_type: str,
        elem_id: str,
        object_namespace: str | None = None,
    ) -> AnyElement: ...
    async def publish(self, event: Event) -> None: ...
    async def flush(self, timeout: float | None = None) -> None: ...
    async def close(self) -> int: ...


@dataclass(frozen=True)
class Case:
    """A publisher that is not open yet, and the events that reached its destination, in order.

    `published` is called after a flush or a close.
    """

    publisher: AnyPublisher
    published: Callable[[], Awaitable[list[Occurrence]]]


class _Threads:
    """One thread for each task, which makes all calls of that task."""

    def __init__(self) -> None:
        self._threads: WeakKeyDictionary[asyncio.Task[Any], ThreadPoolExecutor] = (
            WeakKeyDictionary()
        )

    async def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        task = asyncio.current_task()
        assert task is not None
        thread = self._threads.get(task)
        if thread is None:
            thread = self._threads[task] = ThreadPoolExecutor(1)
        return await asyncio.get_running_loop().run_in_executor(
            thread, partial(function, *args, **kwargs)
        )


class Threaded:
    """An adapter of a publisher for threads to the asynchronous interface."""

    def __init__(self, publisher: sync.Publisher) -> None:
        self._publisher = publisher
        self._threads = _Threads()

    async def __aenter__(self) -> Self:
        await self._threads.call(self._publisher.__enter__)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._threads.call(self._publisher.__exit__, exc_type, exc, traceback)

    def element(
        self,
        *,
        execution_id: str,
        namespace: str,
        object_name: str,
        elem_type: str,
        elem_id: str,
        object_namespace: str | None = None,
    ) -> AnyElement:
        element = self._publisher.element(
            execution_id=execution_id,
            namespace=namespace,
            object_name=object_name,
            elem_type=elem_type,
            elem_id=elem_id,
            object_namespace=object_namespace,
        )
        return _ThreadedElement(element, self._threads)

    async def publish(self, event: Event) -> None:
        await self._threads.call(self._publisher.publish, event)

    async def flush(self, timeout: float | None = None) -> None:
        await self._threads.call(self._publisher.flush, timeout)

    async def close(self) -> int:
        return await self._threads.call(self._publisher.close)


class _ThreadedElement:
    def __init__(self, element: sync.Element, threads: _Threads) -> None:
        self._element = element
        self._threads = threads

    def action(self, name: str) -> AnyAction:
        return _ThreadedAction(self._element.action(name), self._threads)

    async def event(
        self,
        reason: str,
        message: str = "",
        *,
        type: str = "Normal",  # noqa: A002
        action_name: str | None = None,
        event_name: str | None = None,
    ) -> None:
        await self._threads.call(
            self._element.event,
            reason,
            message,
            type=type,
            action_name=action_name,
            event_name=event_name,
        )


class _ThreadedAction:
    def __init__(self, action: sync.Action, threads: _Threads) -> None:
        self._action = action
        self._threads = threads

    async def __aenter__(self) -> Self:
        await self._threads.call(self._action.__enter__)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._threads.call(self._action.__exit__, exc_type, error, traceback)

    async def event(
        self,
        reason: str,
        message: str = "",
        *,
        type: str = "Normal",  # noqa: A002
        event_name: str | None = None,
    ) -> None:
        await self._threads.call(
            self._action.event, reason, message, type=type, event_name=event_name
        )

    async def retry(self, error: BaseException | None = None) -> None:
        await self._threads.call(self._action.retry, error)


EVENT = Event(
    execution_id="exec-1",
    namespace="n",
    object_name="gcs-exec-3",
    reason="镜像拉取##PullImage",
    message="拉取镜像. ## Pulling image.",
    elem_type="KubeDAG.init",
    elem_id="job-a-init",
    action_name="create",
)


def changed(**fields: Any) -> Event:
    """Return `EVENT` with the given fields changed."""
    return msgspec.structs.replace(EVENT, **fields)


def element_of(publisher: AnyPublisher, elem_id: str = "job-a-init") -> AnyElement:
    """Return an element of the execution of `EVENT`."""
    return publisher.element(
        execution_id="exec-1",
        namespace="n",
        object_name="gcs-exec-3",
        elem_type="KubeDAG.init",
        elem_id=elem_id,
    )


def codes(events: list[Occurrence]) -> list[str]:
    return [event.reason.partition("##")[2] for event in events]


class PublisherContract:
    """The tests; a derived class defines the fixture `case`."""

    async def test_omitted_fields_are_filled_in(self, case: Case) -> None:
        before = datetime.now(UTC)
        async with case.publisher as publisher:
            await publisher.publish(EVENT)
        [event] = await case.published()
        assert re.fullmatch(r"gcs-exec-3\.[0-9a-f]{16}", event.name)
        assert before <= event.last_timestamp <= datetime.now(UTC)
        assert event == Occurrence(
            execution_id="exec-1",
            namespace="n",
            name=event.name,
            object_name="gcs-exec-3",
            object_namespace="n",
            reason="镜像拉取##PullImage",
            message="拉取镜像. ## Pulling image.",
            first_timestamp=event.last_timestamp,
            last_timestamp=event.last_timestamp,
            count=1,
            type="Normal",
            elem_type="KubeDAG.init",
            elem_id="job-a-init",
            action_name="create",
        )

    async def test_given_fields_are_published_unchanged(self, case: Case) -> None:
        moment = datetime(2018, 8, 20, 6, 41, 44, 978344, tzinfo=UTC)
        fields = {
            "name": "mine.1",
            "object_namespace": "other",
            "type": "Warning",
            "first_timestamp": datetime(1970, 1, 1, tzinfo=UTC),
            "last_timestamp": moment,
            "count": 2**31 - 1,
        }
        async with case.publisher as publisher:
            await publisher.publish(changed(**fields))
        [event] = await case.published()
        assert {field: getattr(event, field) for field in fields} == fields

    async def test_recurrences_share_a_name_and_other_events_do_not(self, case: Case) -> None:
        async with case.publisher as publisher:
            for event in (EVENT, changed(count=2), changed(elem_id="job-b"), EVENT):
                await publisher.publish(event)
        first, second, other, third = [event.name for event in await case.published()]
        assert first == second == third
        assert other != first

    async def test_an_event_of_an_element_can_be_named(self, case: Case) -> None:
        """The events of an action's life cycle are never named by the caller."""
        async with case.publisher as publisher:
            element = element_of(publisher)
            async with element.action("create") as action:
                await element.event("a##A", "pid 1", event_name="mine.1")
                await action.event("a##A", "pid 2", event_name="mine.1")
                await action.event("a##A", "pid 3")
                await action.retry()
        names = [event.name for event in await case.published()]
        assert names[1:3] == ["mine.1", "mine.1"]
        assert len(set(names)) == 5
        assert all(re.fullmatch(r"gcs-exec-3\.[0-9a-f]{16}", n) for n in set(names) - {"mine.1"})

    async def test_events_of_one_task_keep_their_order(self, case: Case) -> None:
        async def work(publisher: AnyPublisher, worker: str) -> None:
            for number in range(20):
                await publisher.publish(changed(elem_id=worker, message=str(number)))

        async with case.publisher as publisher:
            await asyncio.gather(*(work(publisher, worker) for worker in "abcd"))
        events = await case.published()
        assert len(events) == 80
        for worker in "abcd":
            own = [event.message for event in events if event.elem_id == worker]
            assert own == [str(number) for number in range(20)]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("execution_id", "exec/1"),
            ("object_name", "é" * 127),
            ("reason", ""),
            ("elem_id", "a\0"),
            ("action_name", "\ud800"),
            ("message", "x" * 16385),
            ("count", 0),
            ("last_timestamp", datetime(2018, 8, 20)),
        ],
    )
    async def test_an_event_outside_the_bounds_is_refused_alone(
        self, case: Case, field: str, value: Any
    ) -> None:
        async with case.publisher as publisher:
            with pytest.raises(EventError, match=f"^{field}: "):
                await publisher.publish(changed(**{field: value}))
            await publisher.publish(EVENT)
        assert len(await case.published()) == 1

    async def test_an_action_is_published_from_start_to_end(self, case: Case) -> None:
        async with case.publisher as publisher:
            element = element_of(publisher)
            async with element.action("create") as action:
                await element.event("镜像拉取##PullImage", "拉取镜像. ## Pulling image.")
                await action.event("镜像拉取##Pulled", type="Warning")
                await action.retry(OSError("refused"))
        events = await case.published()
        assert codes(events) == [
            "ActionStart",
            "PullImage",
            "Pulled",
            "ActionRetry",
            "SuccessfulFinish",
        ]
        assert {event.action_name for event in events} == {"create"}
        assert [event.type for event in events[1:4]] == ["Normal", "Warning", "Warning"]
        assert events[3].message.endswith("retry Action: create: OSError: refused")
        times = [event.last_timestamp for event in events]
        assert times == sorted(set(times))

    @pytest.mark.parametrize(
        ("error", "end", "kind"),
        [
            (ValueError("boom"), "ActionFailed", "Warning"),
            (TimeoutError("late"), "ActionTimeout", "Warning"),
            (asyncio.CancelledError(), "ActionCancelled", "Normal"),
            (KeyboardInterrupt(), "ActionCancelled", "Normal"),
            (SystemExit(1), "ActionCancelled", "Normal"),
        ],
    )
    async def test_an_exception_is_published_and_propagated(
        self, case: Case, error: BaseException, end: str, kind: str
    ) -> None:
        async def work() -> None:
            async with case.publisher as publisher, element_of(publisher).action("create"):
                raise error

        with pytest.raises(type(error)) as raised:
            await work()
        assert raised.value is error
        events = await case.published()
        assert codes(events) == ["ActionStart", end]
        assert events[1].type == kind

    async def test_a_cancelled_task_publishes_its_cancellation(self, case: Case) -> None:
        inside = asyncio.Event()

        async def work(publisher: AnyPublisher) -> None:
            async with element_of(publisher).action("create"):
                inside.set()
                await asyncio.Event().wait()

        async with case.publisher as publisher:
            task = asyncio.create_task(work(publisher))
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert codes(await case.published()) == ["ActionStart", "ActionCancelled"]

    async def test_concurrent_actions_of_one_element_are_kept_apart(self, case: Case) -> None:
        everyone = asyncio.Barrier(3)

        async def work(element: AnyElement, name: str) -> None:
            async with element.action(name):
                await everyone.wait()
                await element.event(f"own##{name}")
                await everyone.wait()

        async with case.publisher as publisher:
            element = element_of(publisher)
            await asyncio.gather(*(work(element, name) for name in "xyz"))
        own = [event for event in await case.published() if event.reason.startswith("own")]
        assert sorted((event.reason, event.action_name) for event in own) == [
            ("own##x", "x"),
            ("own##y", "y"),
            ("own##z", "z"),
        ]

    async def test_an_event_outside_an_action_requires_an_action_name(self, case: Case) -> None:
        async with case.publisher as publisher:
            element = element_of(publisher)
            with pytest.raises(EventError, match=r"^action_name: "):
                await element.event("a##A")
            await element.event("a##A", action_name="create")
        [event] = await case.published()
        assert event.action_name == "create"

    async def test_a_flush_returns_when_all_events_have_arrived(self, case: Case) -> None:
        async with case.publisher as publisher:
            for number in range(5):
                await publisher.publish(changed(message=str(number)))
            await publisher.flush(timeout=30)
            assert [event.message for event in await case.published()] == list("01234")
            await publisher.flush()

    async def test_closing_returns_zero_and_may_be_repeated(self, case: Case) -> None:
        async with case.publisher as publisher:
            await publisher.publish(EVENT)
            assert await publisher.close() == 0
            assert await publisher.close() == 0
        assert len(await case.published()) == 1

    async def test_an_exception_in_the_block_is_propagated_and_loses_nothing(
        self, case: Case
    ) -> None:
        error = ValueError("boom")

        async def work() -> None:
            async with case.publisher as publisher:
                await publisher.publish(EVENT)
                raise error

        with pytest.raises(ValueError, match="boom") as raised:
            await work()
        assert raised.value is error
        assert len(await case.published()) == 1

    async def test_calls_on_a_closed_publisher_raise(self, case: Case) -> None:
        publisher = case.publisher

        async def check() -> None:
            with pytest.raises(RuntimeError, match="the publisher is not open"):
                await publisher.publish(EVENT)
            with pytest.raises(RuntimeError, match="the publisher is not open"):
                await publisher.flush()
            with pytest.raises(RuntimeError, match="the publisher is not open"):
                await element_of(publisher).action("create").__aenter__()

        await check()
        assert await publisher.close() == 0
        async with publisher:
            pass
        await check()

    async def test_an_end_that_cannot_be_published_does_not_hide_the_exception(
        self, case: Case
    ) -> None:
        async def work(error: BaseException | None) -> None:
            async with element_of(publisher).action("create"):
                await publisher.close()
                if error is not None:
                    raise error

        publisher = case.publisher
        error = ValueError("boom")
        async with publisher:
            with pytest.raises(ValueError, match="boom") as raised:
                await work(error)
        assert raised.value is error
        assert "was not published" in error.__notes__[0]

    async def test_an_end_that_cannot_be_published_raises_after_success(self, case: Case) -> None:
        async def work() -> None:
            async with element_of(publisher).action("create"):
                await publisher.close()

        publisher = case.publisher
        async with publisher:
            with pytest.raises(RuntimeError, match="the publisher is not open"):
                await work()
        assert codes(await case.published()) == ["ActionStart"]
