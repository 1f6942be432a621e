"""Elements, and the scopes of their actions, which publish the action's life cycle.

`Subject` and `Scope` are pure; `execution_events.sync` shares them.
"""

import asyncio
import threading
from collections.abc import Coroutine
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, NotRequired, Protocol, Self, TypedDict, Unpack

from execution_events.errors import EventError
from execution_events.events import NORMAL
from execution_events.logs import Logger
from execution_events.publisher import lifecycle
from execution_events.publisher.event import Event
from execution_events.publisher.lifecycle import Reason

_log = Logger(__name__)

_RESOLUTION = timedelta(microseconds=1)
_CANCELLATIONS = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)


class ElementIdentity(TypedDict):
    """The identity of an element: its execution, its object, and the element itself."""

    execution_id: str
    namespace: str
    object_name: str
    elem_type: str
    elem_id: str
    object_namespace: NotRequired[str | None]


class Subject:
    """An element as the subject of its events. Thread-safe.

    The last timestamps of its events strictly increase, even if the clock is set back, so that its
    state follows the event reported last.
    """

    def __init__(self, identity: ElementIdentity) -> None:
        self._identity = identity
        self._lock = threading.Lock()
        self._latest = datetime.min.replace(tzinfo=UTC)

    def event(
        self,
        reason: str,
        message: str,
        kind: str,
        action_name: str | None,
        event_name: str | None = None,
    ) -> Event:
        """Return an event of this element with the current time.

        Without `action_name`, its action is the current scope of this element; raises `EventError`
        outside of one.
        """
        return Event(
            **self._identity,
            name=event_name,
            reason=reason,
            message=message,
            type=kind,
            action_name=self._current_action() if action_name is None else action_name,
            last_timestamp=self._now(),
        )

    def report(self, reason: Reason, action_name: str, error: BaseException | None = None) -> Event:
        """Return an event of the catalogue with the current time, and the text of `error`."""
        message = reason.message(self._identity["elem_id"], action_name, error)
        return self.event(reason.text, message, reason.type, action_name)

    def _current_action(self) -> str:
        for scope in reversed(_scopes.get()):
            if scope.subject is self:
                return scope.action_name
        raise EventError("action_name: required outside the scopes of the element's actions")

    def _now(self) -> datetime:
        with self._lock:
            self._latest = max(datetime.now(UTC), self._latest + _RESOLUTION)
            return self._latest


class Scope:
    """An action of an element, and the events of its life cycle."""

    def __init__(self, subject: Subject, action_name: str) -> None:
        self.subject = subject
        self.action_name = action_name

    def start(self) -> Event:
        return self.subject.report(lifecycle.ACTION_START, self.action_name)

    def retry(self, error: BaseException | None) -> Event:
        return self.subject.report(lifecycle.ACTION_RETRY, self.action_name, error)

    def end(self, error: BaseException | None) -> Event:
        """Return the event of the action's end; `error` is the exception that ended its scope."""
        if error is None:
            return self.subject.report(lifecycle.SUCCESSFUL_FINISH, self.action_name)
        if isinstance(error, _CANCELLATIONS):
            return self.subject.report(lifecycle.ACTION_CANCELLED, self.action_name)
        if isinstance(error, TimeoutError):
            return self.subject.report(lifecycle.ACTION_TIMEOUT, self.action_name, error)
        return self.subject.report(lifecycle.ACTION_FAILED, self.action_name, error)

    def enter(self) -> None:
        """Make this the current scope of the task or thread, and of tasks created by it."""
        _scopes.set((*_scopes.get(), self))

    def leave(self) -> None:
        # Not by a token: an asynchronous generator may be closed in another task.
        _scopes.set(tuple(scope for scope in _scopes.get() if scope is not self))


_scopes: ContextVar[tuple[Scope, ...]] = ContextVar("execution_events_scopes", default=())


def note_unpublished(event: Event, failure: BaseException, error: BaseException) -> None:
    """Log that `failure` kept `event` from being published, and add a note to `error`."""
    text = lifecycle.describe(failure)
    _log.error("event_not_published", reason=event.reason, error=text)
    error.add_note(f"The event {event.reason} was not published: {text}")


class EventPublisher(Protocol):
    """The publisher of a scope; `publish` returns when the event is durable."""

    def publish(self, event: Event) -> Coroutine[Any, Any, None]: ...


class Element:
    """An element of an execution, whose actions and events are published."""

    def __init__(self, publisher: EventPublisher, **identity: Unpack[ElementIdentity]) -> None:
        self._publisher = publisher
        self._subject = Subject(identity)

    def action(self, name: str) -> "Action":
        """Return the scope of an action, for `async with`."""
        return Action(self._publisher, Scope(self._subject, name))

    async def event(
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

        Its action is `action_name`, or else the innermost scope of this element that this task
        has entered or inherited from the task that created it; scopes of other tasks do not count.
        Raises `EventError` without a scope, and the errors of `publish`.
        """
        await self._publisher.publish(
            self._subject.event(reason, message, type, action_name, event_name)
        )


class Action:
    """The scope of an action: an asynchronous context manager.

    ActionStart is durable before the body runs. When the scope is left, the event of its end is
    durable: SuccessfulFinish; ActionTimeout for a TimeoutError; ActionCancelled for a cancellation,
    KeyboardInterrupt, SystemExit and GeneratorExit; ActionFailed for all other exceptions. The
    exception is always propagated. If the event of the end cannot be published, the exception gets
    a note and an error is logged; without an exception, the publisher's error is raised.

    A cancellation waits until the current event is durable, and is then propagated. A cancellation
    during the publishing of ActionStart ends the action at once, with ActionCancelled.
    """

    def __init__(self, publisher: EventPublisher, scope: Scope) -> None:
        self._publisher = publisher
        self._scope = scope

    async def __aenter__(self) -> Self:
        failure, cancellation = await self._publish(self._scope.start())
        if cancellation is not None:
            await self.__aexit__(type(cancellation), cancellation, None)
            raise cancellation
        if failure is not None:
            raise failure
        self._scope.enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.leave()
        event = self._scope.end(error)
        failure, cancellation = await self._publish(event)
        propagated = error
        if cancellation is not None and (error is None or isinstance(error, Exception)):
            propagated = cancellation
        if failure is not None:
            if propagated is None:
                raise failure
            note_unpublished(event, failure, propagated)
        if propagated is not None and propagated is not error:
            raise propagated

    async def event(
        self,
        reason: str,
        message: str = "",
        *,
        type: str = NORMAL,  # noqa: A002
        event_name: str | None = None,
    ) -> None:
        """Publish an event of this action, like `Element.event`."""
        scope = self._scope
        await self._publisher.publish(
            scope.subject.event(reason, message, type, scope.action_name, event_name)
        )

    async def retry(self, error: BaseException | None = None) -> None:
        """Publish ActionRetry, a Warning, with the error that caused the retry."""
        await self._publisher.publish(self._scope.retry(error))

    async def _publish(
        self, event: Event
    ) -> tuple[BaseException | None, asyncio.CancelledError | None]:
        """Publish `event` to the end; return its failure, and a cancellation meanwhile."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:  # the coroutine is collected after the end of its loop
            return error, None
        publishing = loop.create_task(self._publisher.publish(event))
        cancellation = None
        while not publishing.done():
            try:
                await asyncio.wait((publishing,))
            except asyncio.CancelledError as error:
                cancellation = error
        if publishing.cancelled():  # as asyncio.run does with every remaining task
            return asyncio.CancelledError("the publishing was cancelled"), cancellation
        return publishing.exception(), cancellation
