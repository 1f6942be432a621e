"""Process of many watchers, which records every message and its time.

    python -m tests.benchmarks.watchers

The first line of standard input is a `Plan` as JSON, answered once every watcher has its first
list. Then `seen` is answered with the number of messages since, and `stop FILE` writes a list with
the `Seen` of each watcher as JSON to a file.
"""

import asyncio
import resource
import time
from typing import NamedTuple, cast

import msgspec
import uvloop

from tests.benchmarks.lines import answer, lines
from tests.benchmarks.load import Head, Request
from tests.support.sse import Chunks, Message, Parser

CONNECTING_LIMIT = 32
"""Connections opened concurrently."""
READY_TIMEOUT = 120
"""Seconds until all have their first list."""


class Watch(msgspec.Struct, frozen=True):
    """A watched path and the number of events in its first list."""

    path: str
    listed: int


class Plan(msgspec.Struct, frozen=True):
    """The server's address, and a watch for each watcher."""

    address: str
    watches: list[Watch]


class Note(NamedTuple):
    """A message about an event and its arrival on the monotonic clock.

    `times` is the event's count, 0 if it is gone.
    """

    moment: float
    name: str
    times: int


class Seen(msgspec.Struct):
    """The messages of one watcher. `view` is the resulting JSON by event name."""

    notes: list[Note] = []
    view: dict[str, str] = {}
    resets: int = 0
    began_with_reset: bool = False
    went_back: int = 0
    """Messages with a lower count than the event's last one since the reset."""
    ids: int = 0
    comments: int = 0
    problem: str | None = None
    """The cause of the end of the stream, or None."""


class _Metadata(msgspec.Struct):
    name: str


class _Event(msgspec.Struct):
    metadata: _Metadata
    count: int = 0


_decoder = msgspec.json.Decoder(_Event)


class View:
    """The state that a watcher builds from its messages."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._counts: dict[str, int] = {}
        self._messages = 0

    def take(self, message: Message, now: float) -> None:
        """Apply a message; raise `ValueError` for one that the API does not define."""
        seen = self.seen
        seen.ids += message.id is not None
        self._messages += 1
        if message.event == "reset":
            seen.began_with_reset |= self._messages == 1
            seen.resets += 1
            seen.view.clear()
            self._counts.clear()
            return
        if message.event not in ("message", "gone"):
            raise ValueError(f"a message of type {message.event}")
        event = _decoder.decode(message.data)
        name = event.metadata.name
        if message.event == "gone":
            seen.view.pop(name, None)
            seen.notes.append(Note(now, name, 0))
            return
        seen.went_back += event.count < self._counts.get(name, 0)
        self._counts[name] = event.count
        seen.view[name] = message.data
        seen.notes.append(Note(now, name, event.count))


class _Connection(asyncio.Protocol):
    def __init__(self, watch: Watch, host: str) -> None:
        self._watch = watch
        self._request = Request(watch.path, headers={"Accept": "text/event-stream"}).head(host)
        self._unparsed = b""
        self._chunks: Chunks | None = None
        self._parser = Parser()
        self.view = View()
        self.ready = asyncio.Event()
        self.stopping = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        try:
            self._take(data, now)
        except ValueError as error:  # includes msgspec's errors
            self._end(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"closed: {exc}" if exc else "closed")

    def _take(self, data: bytes, now: float) -> None:
        if self._chunks is None:
            head, found, data = (self._unparsed + data).partition(b"\r\n\r\n")
            if not found:
                self._unparsed = head
                return
            _check(Head.of(head))
            self._chunks = Chunks()
        for message in self._parser.feed(self._chunks.feed(data)):
            self.view.take(message, now)
        self.view.seen.comments = self._parser.comments
        if self.view.seen.resets and len(self.view.seen.view) >= self._watch.listed:
            self.ready.set()
        if self._chunks.ended:
            self._end("the stream ended")

    def _end(self, problem: str) -> None:
        if not self.stopping:
            self.view.seen.problem = self.view.seen.problem or problem
        self.transport.abort()
        self.ready.set()


def _check(head: Head) -> None:
    kind = head.headers.get("content-type", "").partition(";")[0]
    if head.status != 200 or kind != "text/event-stream":
        raise ValueError(f"status {head.status} with {kind}, expected an event stream")
    if head.headers.get("transfer-encoding") != "chunked":
        raise ValueError("the stream is not sent in chunks")


async def _connected(plan: Plan) -> list[_Connection]:
    """Connect all watchers; each has its first list or a problem."""
    host, _, port = (name := plan.address.removeprefix("http://")).rpartition(":")
    connections = [_Connection(watch, name) for watch in plan.watches]
    loop = asyncio.get_running_loop()
    slots = asyncio.Semaphore(CONNECTING_LIMIT)

    async def connect(connection: _Connection) -> None:
        async with slots:
            await loop.create_connection(lambda: connection, host, int(port))
            await connection.ready.wait()

    async with asyncio.timeout(READY_TIMEOUT), asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(connect(connection))
    return connections


async def run() -> None:
    """Execute the commands of standard input until `stop`."""
    reader = await lines()
    plan = msgspec.json.decode(await reader.readline(), type=Plan)
    begun = time.monotonic()
    connections = await _connected(plan)
    seen = [connection.view.seen for connection in connections]
    problems = [each.problem for each in seen if each.problem is not None]
    answer(seconds=time.monotonic() - begun, problems=problems)
    listed = sum(len(each.notes) for each in seen)
    while command := (await reader.readline()).decode().split():
        if command[0] == "seen":
            answer(messages=sum(len(each.notes) for each in seen) - listed)
            continue
        for connection in connections:
            connection.stopping = True
            connection.transport.abort()
        with open(command[1], "wb") as file:  # noqa: ASYNC230, PTH123 - the loop has nothing else to do
            file.write(msgspec.json.encode(seen))
        answer()
        return


def main() -> None:
    """Watch until standard input says `stop`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()
