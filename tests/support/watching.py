"""A client of a watch."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx

from tests.support import sse
from tests.support.consumers import DEADLINE

Key = tuple[str, str]
"""(namespace, name)"""


class Message(NamedTuple):
    """One message: its type, its data from JSON (None for an empty one), and its id, if any."""

    kind: str
    data: Any
    id: str | None

    @classmethod
    def of(cls, message: sse.Message) -> "Message":
        """Decode a message's data."""
        return cls(message.event, json.loads(message.data) if message.data else None, message.id)


class Watcher:
    """The state of a client: the events it knows, and the id to resume from."""

    def __init__(self) -> None:
        self.events: dict[Key, dict[str, Any]] = {}
        self.id = ""
        self.seen: list[Message] = []
        self.comments = self.ids = 0

    def take(self, message: Message) -> None:
        """Apply a message."""
        self.seen.append(message)
        match message.kind:
            case "reset":
                self.events.clear()
            case "gone":
                self.events.pop(_key(message.data), None)
            case "message":
                self.events[_key(message.data)] = message.data
            case other:
                raise AssertionError(f"a message of type {other!r}")

    @asynccontextmanager
    async def watching(
        self,
        api: httpx.AsyncClient,
        path: str,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator["Watching"]:
        """Watch from its last id while the context is open."""
        fields = {"Accept": "text/event-stream", **(headers or {})}
        if self.id:
            fields["Last-Event-ID"] = self.id
        async with api.stream("GET", path, params=dict(params or {}), headers=fields) as response:
            yield Watching(self, response)


class Watching:
    """One connection of a watcher."""

    def __init__(self, watcher: Watcher, response: httpx.Response) -> None:
        self.response = response
        self._watcher = watcher
        self._parser = sse.Parser(watcher.id)
        self._pieces = response.aiter_bytes()
        self._parsed: deque[sse.Message] = deque()

    async def take(self) -> Message | None:
        """Apply the next message to the watcher and return it; None at the end of the stream."""
        while not self._parsed:
            piece = await anext(self._pieces, None)
            if piece is None:
                return None
            self._parsed.extend(self._parser.feed(piece))
            self._watcher.comments, self._watcher.ids = self._parser.comments, self._parser.ids
            if not self._parsed:
                self._watcher.id = self._parser.last_id
        message = Message.of(self._parsed.popleft())
        self._watcher.take(message)
        if message.id is not None:
            self._watcher.id = message.id
        if not self._parsed:
            # An id may follow the message without one of its own.
            self._watcher.id = self._parser.last_id
        return message

    async def next(self, number: int = 1) -> list[Message]:
        """Return the next messages."""
        messages: list[Message] = []
        async with asyncio.timeout(DEADLINE):
            while len(messages) < number:
                message = await self.take()
                assert message is not None, "the watch has ended"
                messages.append(message)
        return messages

    async def until(self, events: Mapping[Key, dict[str, Any]]) -> None:
        """Return once the watcher knows these events and no others."""
        async with asyncio.timeout(DEADLINE):
            while self._watcher.events != events:
                await self.next()

    async def end(self) -> None:
        """Return once the stream has ended."""
        async with asyncio.timeout(DEADLINE):
            while await self.take():
                pass


def keyed(events: Iterable[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """Return the events of a list by key."""
    return {_key(event): event for event in events}


def _key(event: Mapping[str, Any]) -> Key:
    metadata = event["metadata"]
    return metadata["namespace"], metadata["name"]
