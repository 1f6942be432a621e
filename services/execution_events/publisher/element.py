"""Elements and the scopes of their actions: what the life cycle of an action publishes.

What is pure stands first; `execution_events.sync` has its own scopes around it.
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

_logger = Logger(__name__)

_MOMENT = timedelta(microseconds=1)
_CANCELLATIONS = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)


class Identity(TypedDict):
    """Which element of which execution, and the object that it is of."""

    execution_id: str
    namespace: str
    object_name: str
    elem_type: str
    elem_id: str
    object_namespace: NotRequired[str | None]


class Subject:
    """An element as its events tell of it.

    The last timestamps of its events strictly increase, also when the clock goes back: its state
    is that of the event that was reported last. Safe to use from many threads.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._lock = threading.Lock()
        self._latest = datetime.min.replace(tzinfo=UTC)

    def event(self, reason: str, message: str, kind: str, action_name: str | None) -> Event:
        """An event of this element, now; without `action_name` of the scope it is reported in.

        Raises `EventError` without `action_name` outside the scopes of this element.
        """
        return Event(
            **self._identity,
            reason=reason,
            message=message,
            type=kind,
            action_name=self._current_action() if action_name is None else action_name,
            last_timestamp=self._now(),
        )

    def report(self, reason: Reason, action_name: str, error: BaseException | None = None) -> Event:
        """An event of the catalogue, now, with the text of `error` if there is one."""
        message = reason.message(self._identity["elem_id"], action_name, error)
        return self.event(reason.text, message, reason.type, action_name)

    def _current_action(self) -> str:
        for scope in reversed(_scopes.get()):
            if scope.subject is self:
                return scope.action_name
        raise EventError("action_name: needed outside the scopes of the element's actions")

    def _now(self) -> datetime:
        with self._lock:
            self._latest = max(datetime.now(UTC), self._latest + _MOMENT)
            return self._latest


class Scope:
    """An action of an element, from its start to its end."""

    def __init__(self, subject: Subject, action_name: str) -> None:
        self.subject = subject
        self.action_name = action_name

    def start(self) -> Event:
        return self.subject.report(lifecycle.ACTION_START, self.action_name)

    def retry(self, error: BaseException | None) -> Event:
        return self.subject.report(lifecycle.ACTION_RETRY, self.action_name, error)

    def end(self, error: BaseException | None) -> Event:
        """What becomes of the action when its scope is left, with `error` or without."""
        if error is None:
            return self.subject.report(lifecycle.SUCCESSFUL_FINISH, self.action_name)
        if isinstance(error, _CANCELLATIONS):
            return self.subject.report(lifecycle.ACTION_CANCELLED, self.action_name)
        if isinstance(error, TimeoutError):
            return self.subject.report(lifecycle.ACTION_TIMEOUT, self.action_name, error)
        return self.subject.report(lifecycle.ACTION_FAILED, self.action_name, error)

    def enter(self) -> None:
        """Make it the current scope of this task or thread and of the tasks it will create."""
        _scopes.set((*_scopes.get(), self))

    def leave(self) -> None:
        # Not by a token: an asynchronous generator may be closed in another task.
        _scopes.set(tuple(scope for scope in _scopes.get() if scope is not self))


_scopes: ContextVar[tuple[Scope, ...]] = ContextVar("execution_events_scopes", default=())


def note_unpublished(event: Event, failure: BaseException, error: BaseException) -> None:
    """Tell of `event`, which `failure` has lost, in the log and in `error`, which goes on."""
    _logger.error("event not published", reason=event.reason, error=repr(failure))
    error.add_note(f"The event {event.reason} was not published: {failure!r}")


class EventPublisher(Protocol):
    """What scopes publish with: `publish` returns when the event is durable."""

    def publish(self, event: Event) -> Coroutine[Any, Any, None]: ...


class Element:
    """An element of an execution, whose actions and events are published."""

    def __init__(self, publisher: EventPublisher, **identity: Unpack[Identity]) -> None:
        self._publisher = publisher
        self._subject = Subject(identity)

    def action(self, name: str) -> "Action":
        """The scope of an action, to be entered with `async with`."""
        return Action(self._publisher, Scope(self._subject, name))

    async def event(
        self,
        reason: str,
        message: str = "",
        *,
        type: str = NORMAL,  # noqa: A002
        action_name: str | None = None,
    ) -> None:
        """Publish an event of your own: reason `<zh>##<CamelCase>`, message `<zh> ## <en>`.

        Its action is `action_name`, or else the innermost scope of this element that this task
        has entered, or that was open where the task was created; scopes of other tasks do not
        count. Raises `EventError` where there is none, and what `publish` raises.
        """
        await self._publisher.publish(self._subject.event(reason, message, type, action_name))


class Action:
    """The scope of an action: an asynchronous context manager.

    ActionStart is durable before the body runs. When the scope is left, the event of its end is
    durable: SuccessfulFinish; ActionTimeout for a TimeoutError; ActionCancelled for a cancellation,
    KeyboardInterrupt, SystemExit and GeneratorExit; ActionFailed for all other exceptions. The
    exception goes on in any case. Where the end's event cannot be published, the exception has a
    note and the log an error; without an exception, the publisher's error is raised.

    A cancellation waits until the event that is being published is durable, and then goes on.
    One that comes while ActionStart is published ends the action at once, with ActionCancelled.
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
        going_on = error
        if cancellation is not None and (error is None or isinstance(error, Exception)):
            going_on = cancellation
        if failure is not None:
            if going_on is None:
                raise failure
            note_unpublished(event, failure, going_on)
        if going_on is not None and going_on is not error:
            raise going_on

    async def event(self, reason: str, message: str = "", *, type: str = NORMAL) -> None:  # noqa: A002
        """Publish an event of your own in this action, like `Element.event`."""
        await self._publisher.publish(
            self._scope.subject.event(reason, message, type, self._scope.action_name)
        )

    async def retry(self, error: BaseException | None = None) -> None:
        """Publish ActionRetry, a Warning, with the error that made it necessary."""
        await self._publisher.publish(self._scope.retry(error))

    async def _publish(
        self, event: Event
    ) -> tuple[BaseException | None, asyncio.CancelledError | None]:
        """Publish `event` to the end; give what went wrong, and the cancellation meanwhile."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:  # a coroutine that is collected after its loop's end
            return error, None
        publishing = loop.create_task(self._publisher.publish(event))
        cancellation = None
        while not publishing.done():
            try:
                await asyncio.wait((publishing,))
            except asyncio.CancelledError as error:
                cancellation = error
        if publishing.cancelled():  # by name, as asyncio.run does with every task that is left
            return asyncio.CancelledError("the publishing was cancelled"), cancellation
        return publishing.exception(), cancellation
