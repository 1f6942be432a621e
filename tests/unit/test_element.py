"""Scopes of actions: the events published, and the exceptions propagated."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from execution_events.errors import EventError, RetryableError
from execution_events.publisher import element as module
from execution_events.publisher.element import Element
from execution_events.publisher.event import Event

LOST = RetryableError("Kafka is unavailable")


class Spy:
    """A publisher that records events; `gate` delays them and `failures` replace them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.failures: dict[str, BaseException] = {}

    async def publish(self, event: Event) -> None:
        self.arrived.set()
        await self.gate.wait()
        if (failure := self.failures.get(code(event))) is not None:
            raise failure
        self.events.append(event)

    @property
    def codes(self) -> list[str]:
        return [code(event) for event in self.events]

    def hold(self) -> None:
        self.gate.clear()
        self.arrived.clear()


def code(event: Event) -> str:
    return event.reason.partition("##")[2]


@pytest.fixture
def spy() -> Spy:
    return Spy()


@pytest.fixture
def element(spy: Spy) -> Element:
    return element_of(spy)


def element_of(spy: Spy, **identity: Any) -> Element:
    return Element(
        spy,
        **{
            "execution_id": "exec-1",
            "namespace": "n",
            "object_name": "o",
            "elem_type": "KubeDAG.init",
            "elem_id": "job-a-init",
            **identity,
        },
    )


async def test_an_action_publishes_its_start_its_events_and_its_end(
    spy: Spy, element: Element
) -> None:
    async with element.action("create"):
        assert spy.codes == ["ActionStart"]
        await element.event("镜像拉取##PullImage", "拉取镜像. ## Pulling image.")
    assert [(e.reason, e.message, e.type, e.action_name) for e in spy.events] == [
        (
            "启动##ActionStart",
            "元素(job-a-init)开始执行(create)流程. ## Element(job-a-init) start to Action(create).",
            "Normal",
            "create",
        ),
        ("镜像拉取##PullImage", "拉取镜像. ## Pulling image.", "Normal", "create"),
        (
            "执行成功##SuccessfulFinish",
            "元素(job-a-init)执行create成功. "
            "## Element(job-a-init) execute Action: create successfully",
            "Normal",
            "create",
        ),
    ]


async def test_events_carry_the_identity_of_the_element(spy: Spy) -> None:
    async with element_of(spy, object_namespace="other").action("create") as action:
        await action.event("镜像拉取##PullImage", "m", type="Warning")
    for event in spy.events:
        assert (event.execution_id, event.namespace, event.object_name) == ("exec-1", "n", "o")
        assert (event.elem_type, event.elem_id) == ("KubeDAG.init", "job-a-init")
        assert (event.object_namespace, event.name, event.count) == ("other", None, 1)
    assert spy.events[1].type == "Warning"


@pytest.mark.parametrize(
    ("error", "end", "kind"),
    [
        (ValueError("boom"), "ActionFailed", "Warning"),
        (ExceptionGroup("group", [TimeoutError()]), "ActionFailed", "Warning"),
        (TimeoutError("too long"), "ActionTimeout", "Warning"),
        (asyncio.CancelledError(), "ActionCancelled", "Normal"),
        (KeyboardInterrupt(), "ActionCancelled", "Normal"),
        (SystemExit(1), "ActionCancelled", "Normal"),
    ],
)
async def test_an_exception_is_published_and_propagated(
    spy: Spy, element: Element, error: BaseException, end: str, kind: str
) -> None:
    with pytest.raises(type(error)) as raised:
        async with element.action("create"):
            raise error
    assert raised.value is error
    assert spy.codes == ["ActionStart", end]
    assert spy.events[-1].type == kind


async def test_a_failure_has_the_error_in_both_languages(spy: Spy, element: Element) -> None:
    with pytest.raises(ValueError, match="boom"):
        async with element.action("create"):
            raise ValueError("boom\nbang")
    assert [half.strip() for half in spy.events[-1].message.split("##")] == [
        "元素(job-a-init)执行create失败: ValueError: boom bang",
        "Element(job-a-init) execute Action: create failed: ValueError: boom bang",
    ]


async def test_a_retry_is_a_warning_with_the_error(spy: Spy, element: Element) -> None:
    async with element.action("create") as action:
        await action.retry()
        await action.retry(OSError("refused"))
    assert spy.codes == ["ActionStart", "ActionRetry", "ActionRetry", "SuccessfulFinish"]
    assert spy.events[1].message.endswith("Element(job-a-init) retry Action: create")
    assert spy.events[2].message.endswith("retry Action: create: OSError: refused")
    assert spy.events[1].type == "Warning"


async def test_a_timeout_around_the_action_cancels_it_and_one_inside_times_it_out(
    spy: Spy, element: Element
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0), element.action("outside"):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError):
        async with element.action("inside"), asyncio.timeout(0):
            await asyncio.Event().wait()
    assert spy.codes == ["ActionStart", "ActionCancelled", "ActionStart", "ActionTimeout"]


async def test_the_times_of_an_element_increase_when_the_clock_is_set_back(
    spy: Spy, element: Element, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = [datetime(2018, 8, 20, tzinfo=UTC) - timedelta(hours=hour) for hour in range(9)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return moments.pop(0)

    monkeypatch.setattr(module, "datetime", Clock)
    async with element.action("create") as action:
        await action.retry()
        await element.event("a##A")
    async with element.action("start"):
        pass
    times = [event.last_timestamp for event in spy.events if event.last_timestamp is not None]
    assert len(times) == 6
    assert times == sorted(set(times))


async def test_the_body_does_not_run_without_a_published_start(spy: Spy, element: Element) -> None:
    spy.failures["ActionStart"] = LOST
    with pytest.raises(RetryableError) as raised:
        async with element.action("create"):
            pytest.fail("the body has run")
    assert raised.value is LOST
    assert spy.events == []
    with pytest.raises(EventError, match="action_name"):
        await element.event("a##A")


async def test_an_end_that_cannot_be_published_raises_after_success(
    spy: Spy, element: Element
) -> None:
    spy.failures["SuccessfulFinish"] = LOST
    with pytest.raises(RetryableError) as raised:
        async with element.action("create"):
            pass
    assert raised.value is LOST


@pytest.mark.parametrize("error", [ValueError("boom"), asyncio.CancelledError()])
async def test_an_end_that_cannot_be_published_does_not_hide_the_exception(
    spy: Spy, element: Element, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    spy.failures |= {"ActionFailed": LOST, "ActionCancelled": LOST}
    with pytest.raises(type(error)) as raised:
        async with element.action("create"):
            raise error
    assert raised.value is error
    [note] = error.__notes__
    assert "was not published: RetryableError: Kafka is unavailable" in note
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "event_not_published")


class Worker:
    """A task that runs one action."""

    def __init__(self, element: Element, *, error: BaseException | None = None) -> None:
        self.inside = asyncio.Event()
        self.finish = asyncio.Event()
        self._element = element
        self._error = error
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._element.action("create"):
            self.inside.set()
            await self.finish.wait()
            if self._error is not None:
                raise self._error


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    ("error", "end"), [(None, "SuccessfulFinish"), (ValueError("boom"), "ActionFailed")]
)
async def test_a_cancellation_at_the_end_waits_for_the_event_and_is_propagated(
    spy: Spy, element: Element, times: int, error: BaseException | None, end: str
) -> None:
    worker = Worker(element, error=error)
    await worker.inside.wait()
    spy.hold()
    worker.finish.set()
    await spy.arrived.wait()
    for _ in range(times):
        worker.task.cancel()
        await settle()
    assert not worker.task.done()
    spy.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await worker.task
    assert spy.codes == ["ActionStart", end]


async def test_a_second_cancellation_does_not_stop_the_event_of_the_first(
    spy: Spy, element: Element
) -> None:
    worker = Worker(element)
    await worker.inside.wait()
    spy.hold()
    worker.task.cancel()
    await spy.arrived.wait()
    worker.task.cancel()
    await settle()
    spy.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await worker.task
    assert spy.codes == ["ActionStart", "ActionCancelled"]


async def test_a_cancellation_does_not_replace_an_interrupt(spy: Spy, element: Element) -> None:
    scope = element.action("create")
    await scope.__aenter__()
    spy.hold()
    leaving = asyncio.create_task(scope.__aexit__(SystemExit, SystemExit(1), None))
    await spy.arrived.wait()
    leaving.cancel()
    await settle()
    spy.gate.set()
    await leaving  # nothing is raised instead of the interrupt
    assert spy.codes == ["ActionStart", "ActionCancelled"]


async def test_a_cancellation_at_the_start_ends_the_action(spy: Spy, element: Element) -> None:
    spy.hold()
    worker = Worker(element)
    await spy.arrived.wait()
    worker.task.cancel()
    await settle()
    assert not worker.task.done()
    spy.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await worker.task
    assert not worker.inside.is_set()
    assert spy.codes == ["ActionStart", "ActionCancelled"]


async def test_a_failure_to_publish_is_noted_on_the_cancellation(
    spy: Spy, element: Element
) -> None:
    spy.failures["SuccessfulFinish"] = LOST
    worker = Worker(element)
    await worker.inside.wait()
    spy.hold()
    worker.finish.set()
    await spy.arrived.wait()
    worker.task.cancel()
    await settle()
    spy.gate.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await worker.task
    assert "Kafka is unavailable" in raised.value.__notes__[0]


async def test_a_timeout_during_the_end_is_raised_as_a_timeout(spy: Spy, element: Element) -> None:
    limit = asyncio.timeout(None)

    async def open_gate() -> None:
        await spy.arrived.wait()
        limit.reschedule(0)
        while not limit.expired():
            await asyncio.sleep(0)
        spy.gate.set()

    async def work() -> None:
        async with limit, element.action("create"):
            spy.hold()
            opening.append(asyncio.create_task(open_gate()))

    opening: list[asyncio.Task[None]] = []
    with pytest.raises(TimeoutError):
        await work()
    assert opening[0].done()
    assert spy.codes == ["ActionStart", "SuccessfulFinish"]


async def test_closing_an_asynchronous_generator_cancels_its_action(
    spy: Spy, element: Element
) -> None:
    async def steps() -> AsyncIterator[int]:
        async with element.action("create"):
            yield 1

    generator = steps()
    assert await anext(generator) == 1
    # In another task, like the event loop closes abandoned ones.
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
    assert spy.codes == ["ActionStart", "ActionCancelled"]


def test_an_action_abandoned_by_its_loop_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        async with element_of(Spy()).action("create"):
            await asyncio.Event().wait()

    async def begin() -> None:
        await asyncio.wait((task,), timeout=0)

    loop = asyncio.new_event_loop()
    coroutine = work()
    task = loop.create_task(coroutine)
    for _ in range(4):
        loop.run_until_complete(begin())
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine.close()
    [record] = [record for record in caplog.records if record.name.startswith("execution_events")]
    assert record.getMessage() == "event_not_published"


async def test_an_event_outside_a_scope_requires_an_action_name(spy: Spy, element: Element) -> None:
    with pytest.raises(EventError, match=r"^action_name: "):
        await element.event("a##A")
    await element.event("a##A", action_name="create")
    async with element.action("create"):
        await element.event("a##A", action_name="other")
    with pytest.raises(EventError, match=r"^action_name: "):
        await element.event("a##A")
    named = [event.action_name for event in spy.events if event.reason == "a##A"]
    assert named == ["create", "other"]


async def test_an_event_belongs_to_the_innermost_action_of_its_element(
    spy: Spy, element: Element
) -> None:
    other = element_of(spy, elem_id="job-b")
    async with element.action("outer"), other.action("others"):
        await element.event("a##A")
        async with element.action("inner"):
            await element.event("a##A")
            await other.event("a##A")
        await element.event("a##A")
    named = [(e.elem_id, e.action_name) for e in spy.events if e.reason == "a##A"]
    assert named == [
        ("job-a-init", "outer"),
        ("job-a-init", "inner"),
        ("job-b", "others"),
        ("job-a-init", "outer"),
    ]


async def test_concurrent_tasks_have_separate_actions(spy: Spy, element: Element) -> None:
    everyone = asyncio.Barrier(3)

    async def work(name: str) -> None:
        async with element.action(name) as action:
            await everyone.wait()
            await element.event(f"a##{name}")
            await asyncio.create_task(element.event(f"child##{name}"))
            await everyone.wait()
            await action.event(f"own##{name}")

    await asyncio.gather(*(work(name) for name in "xyz"))
    own = [event for event in spy.events if event.reason.startswith(("a##", "child##", "own##"))]
    assert len(own) == 9
    assert all(event.action_name == code(event) for event in own)
