"""A client of a watch: server-sent events, as their specification has them parsed."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx

from tests.support.consumers import DEADLINE

Key = tuple[str, str]
"""(namespace, name)"""


class Message(NamedTuple):
    """One message: its type, its data, and the id that it brought."""

    kind: str
    data: Any
    id: str


class Parser:
    """Lines in, messages out; `id` is the last id of a message that was whole."""

    def __init__(self, id_: str = "") -> None:
        self.id = id_
        self.comments = 0
        self.ids = 0
        """How many came, with messages and without."""
        self._kind = self._new_id = ""
        self._data: list[str] = []

    def line(self, line: str) -> Message | None:
        """What ends with `line`, if anything does."""
        if not line:
            self.id = self._new_id or self.id
            message = Message(self._kind or "message", "\n".join(self._data), self._new_id)
            self._kind, self._new_id, self._data = "", "", []
            return message._replace(data=json.loads(message.data)) if message.data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                self.comments += 1
            case "data":
                self._data.append(value)
            case "event":
                self._kind = value
            case "id":
                self._new_id = value
                self.ids += 1
        return None


class Watcher:
    """What a client knows: the events that it was told of, and the id to go on from."""

    def __init__(self) -> None:
        self.events: dict[Key, dict[str, Any]] = {}
        self.id = ""
        self.seen: list[Message] = []
        self.comments = self.ids = 0

    def take(self, message: Message) -> None:
        """Do what a message says."""
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
        """Watch from where it stands until the block ends."""
        asked = {"Accept": "text/event-stream", **(headers or {})}
        if self.id:
            asked["Last-Event-ID"] = self.id
        async with api.stream("GET", path, params=dict(params or {}), headers=asked) as response:
            yield Watching(self, response)


class Watching:
    """One connection of a watcher."""

    def __init__(self, watcher: Watcher, response: httpx.Response) -> None:
        self.response = response
        self._watcher = watcher
        self._parser = Parser(watcher.id)
        self._lines = response.aiter_lines()

    async def take(self) -> Message | None:
        """The next message, which the watcher has taken; None at the end of the answer."""
        async for line in self._lines:
            message = self._parser.line(line)
            self._watcher.id = self._parser.id
            self._watcher.comments, self._watcher.ids = self._parser.comments, self._parser.ids
            if message is not None:
                self._watcher.take(message)
                return message
        return None

    async def next(self, number: int = 1) -> list[Message]:
        """The next messages."""
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
        """Return once the answer has ended."""
        async with asyncio.timeout(DEADLINE):
            while await self.take():
                pass


def keyed(events: Iterable[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """A list as a watcher knows it."""
    return {_key(event): event for event in events}


def _key(event: Mapping[str, Any]) -> Key:
    metadata = event["metadata"]
    return metadata["namespace"], metadata["name"]
