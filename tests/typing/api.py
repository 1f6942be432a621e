"""The public API from the view of a worker; checked by mypy, never run.

Lines with `type: ignore` must be type errors: mypy also reports an unused one.
"""

from datetime import UTC, datetime
from typing import assert_type

import execution_events
from execution_events import (
    NORMAL,
    WARNING,
    Action,
    Element,
    Event,
    EventError,
    ExecutionEventsError,
    Publisher,
    RetryableError,
    SettingsError,
    SpoolFullError,
    sync,
)
from execution_events.events import Occurrence
from execution_events.settings import Settings
from execution_events.testing import RecordingPublisher, SyncRecordingPublisher


def event() -> Event:
    return Event(
        execution_id="e19d3faf",
        namespace="n",
        object_name="o",
        reason="镜像拉取##PullImage",
        message="拉取镜像. ## Pulling image.",
        elem_type="KubeDAG.init",
        elem_id="job-a-init",
        action_name="create",
        name=None,
        object_namespace="n",
        type=WARNING,
        first_timestamp=datetime.now(UTC),
        last_timestamp=None,
        count=2,
    )


async def work(publisher: Publisher) -> None:
    element = publisher.element(
        execution_id="e19d3faf",
        namespace="n",
        object_name="o",
        elem_type="KubeDAG.init",
        elem_id="job-a-init",
        object_namespace=None,
    )
    assert_type(element, Element)
    async with element.action("create") as action:
        assert_type(action, Action)
        await action.retry()
        await action.retry(OSError())
        await action.event("镜像拉取##PullImage", "拉取镜像. ## Pulling image.", type=NORMAL)
        await action.event("a##A", event_name="mine.1")
        await element.event("镜像拉取##PullImage")
    await element.event("a##A", "m", type=WARNING, action_name="create", event_name=None)
    await publisher.publish(event())
    assert_type(await publisher.flush(timeout=1.5), None)
    assert_type(await publisher.close(), int)


async def asynchronous() -> None:
    async with Publisher.from_settings() as publisher:
        assert_type(publisher, Publisher)
        await work(publisher)
    async with Publisher.from_settings({"EXECUTION_EVENTS_TOPIC": "t"}), Publisher(Settings()):
        pass
    async with RecordingPublisher() as recording:
        assert_type(recording, RecordingPublisher)
        await work(recording)
        assert_type(recording.events, list[Occurrence])


def threaded_work(publisher: sync.Publisher) -> None:
    element = publisher.element(
        execution_id="e", namespace="n", object_name="o", elem_type="t", elem_id="i"
    )
    assert_type(element, sync.Element)
    with element.action("create") as action:
        assert_type(action, sync.Action)
        action.retry(OSError())
        action.event("a##A", type=WARNING)
        element.event("a##A", "m", action_name="create")
    publisher.publish(event())
    publisher.flush()
    assert_type(publisher.close(), int)


def threads() -> None:
    with sync.Publisher.from_settings() as publisher:
        assert_type(publisher, sync.Publisher)
        threaded_work(publisher)
    with SyncRecordingPublisher() as recording:
        threaded_work(recording)
        assert_type(recording.events, list[Occurrence])


def errors(error: ExecutionEventsError) -> bool:
    wrong: tuple[type[ExecutionEventsError], ...] = (EventError, SettingsError)
    later: tuple[type[RetryableError], ...] = (SpoolFullError,)
    return isinstance(error, wrong + later)


async def wrong_uses(publisher: Publisher, threaded: sync.Publisher, element: Element) -> None:
    Event(execution_id="e")  # type: ignore[call-arg]
    Event("e")  # type: ignore[call-arg]
    event().count = 2  # type: ignore[misc]
    publisher.element(execution_id="e")  # type: ignore[call-arg]
    publisher.publish(event())  # type: ignore[unused-coroutine]
    await publisher.publish("event")  # type: ignore[arg-type]
    await publisher.flush("1")  # type: ignore[arg-type]
    await element.event(b"a##A")  # type: ignore[arg-type]
    await element.event("a##A", "m", "Normal")  # type: ignore[call-arg]
    element.action("create", event_name="mine.1")  # type: ignore[call-arg]
    await work(threaded)  # type: ignore[arg-type]
    threaded_work(publisher)  # type: ignore[arg-type]
    with element.action("create"):  # type: ignore[attr-defined]
        pass
    async with threaded:  # type: ignore[attr-defined]
        pass
    Publisher.from_settings({"EXECUTION_EVENTS_TOPIC": 1})  # type: ignore[dict-item]
    _ = execution_events.Unknown  # type: ignore[attr-defined]
