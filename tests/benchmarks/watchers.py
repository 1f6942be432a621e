"""Many watchers in one process, which note when they are told what.

    python -m tests.benchmarks.watchers

Standard input is lines. The first is a `Plan` as JSON; the answer, a line of JSON, comes when every
watcher has its first list. Then `seen` is answered with how many messages have come since, and
`stop FILE` leaves what each watcher has seen, a list of `Seen` as JSON, in a file.
"""

import asyncio
import resource
import time
from typing import NamedTuple, cast

import msgspec
import uvloop

from tests.benchmarks.lines import answer, lines
from tests.benchmarks.load import Ask, Head
from tests.support.sse import Chunks, Message, Parser

AT_ONCE = 32
"""Connections that are opened at the same time."""
READY_LIMIT = 120
"""Seconds until all have their first list."""
_FILES = 256
"""Open files beside the connections."""


class Watch(msgspec.Struct, frozen=True):
    """What is watched, and how many events its first list has."""

    path: str
    listed: int


class Plan(msgspec.Struct, frozen=True):
    """The server's address, and a watch for each watcher."""

    address: str
    watches: list[Watch]


class Note(NamedTuple):
    """A message: when it came, by the monotonic clock, and of which event.

    `times` is the event's count, 0 where it is gone.
    """

    moment: float
    name: str
    times: int


class Seen(msgspec.Struct):
    """All that one watcher was told. `view` is what it knows in the end: JSON by event's name."""

    notes: list[Note] = []
    view: dict[str, str] = {}
    resets: int = 0
    began_with_reset: bool = False
    went_back: int = 0
    """Messages with a lower count than the one before of that event, without a reset between."""
    ids: int = 0
    comments: int = 0
    problem: str | None = None
    """Why it ended, if it did."""


class _Metadata(msgspec.Struct):
    name: str


class _Told(msgspec.Struct):
    metadata: _Metadata
    count: int = 0


_decoder = msgspec.json.Decoder(_Told)


class View:
    """What a watcher makes of its messages."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._counts: dict[str, int] = {}
        self._messages = 0

    def take(self, message: Message, now: float) -> None:
        """Take a message. Raises `ValueError` where it is none of the API's."""
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
            raise ValueError(f"a message of type {message.event!r}")
        told = _decoder.decode(message.data)
        name = told.metadata.name
        if message.event == "gone":
            seen.view.pop(name, None)
            seen.notes.append(Note(now, name, 0))
            return
        seen.went_back += told.count < self._counts.get(name, 0)
        self._counts[name] = told.count
        seen.view[name] = message.data
        seen.notes.append(Note(now, name, told.count))


class _Connection(asyncio.Protocol):
    def __init__(self, watch: Watch, host: str) -> None:
        self._watch = watch
        self._request = Ask(watch.path, headers={"Accept": "text/event-stream"}).head(host)
        self._unparsed = b""
        self._chunks: Chunks | None = None
        self._parser = Parser()
        self.view = View()
        self.ready = asyncio.Event()
        self.stopping = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        try:
            self._take(data, now)
        except ValueError as error:  # msgspec's are, too
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
            self._end("the stream has ended")

    def _end(self, problem: str) -> None:
        if not self.stopping:
            self.view.seen.problem = self.view.seen.problem or problem
        self.transport.abort()
        self.ready.set()


def _check(head: Head) -> None:
    kind = head.headers.get("content-type", "").partition(";")[0]
    if head.status != 200 or kind != "text/event-stream":
        raise ValueError(f"no stream of events, but status {head.status}, {kind}")
    if head.headers.get("transfer-encoding") != "chunked":
        raise ValueError("a stream that is not sent in chunks")


async def _connected(plan: Plan) -> list[_Connection]:
    """All watchers, each with its first list or with a problem."""
    host, _, port = (name := plan.address.removeprefix("http://")).rpartition(":")
    connections = [_Connection(watch, name) for watch in plan.watches]
    loop = asyncio.get_running_loop()
    places = asyncio.Semaphore(AT_ONCE)

    async def connect(connection: _Connection) -> None:
        async with places:
            await loop.create_connection(lambda: connection, host, int(port))
            await connection.ready.wait()

    async with asyncio.timeout(READY_LIMIT), asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(connect(connection))
    return connections


async def run() -> None:
    """Watch until `stop`."""
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
        with open(command[1], "wb") as file:  # noqa: ASYNC230, PTH123 - nothing else is to be done
            file.write(msgspec.json.encode(seen))
        answer()
        return


def main() -> None:
    """Watch as standard input asks."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()
