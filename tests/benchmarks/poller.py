"""Process that polls lists for new events and records the time of each.

    python -m tests.benchmarks.poller

The first line of standard input is a `Plan` as JSON, answered after the first request. Then `seen`
is answered with the number of events seen, and `stop FILE` writes a `Polled` as JSON to a file.
Lists are polled one after another, the next as soon as the current one is nearly complete.
"""

import asyncio
import time
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from tests.benchmarks.figures import percentile
from tests.benchmarks.lines import answer, lines
from tests.benchmarks.load import Answer, Request


class List(msgspec.Struct, frozen=True):
    """A list that is polled until it has `listed` events."""

    path: str
    listed: int


class Plan(msgspec.Struct, frozen=True):
    """The server's address, the lists, and seconds between two requests for one of them."""

    address: str
    interval: float
    ahead: int
    """Events that a list still lacks when polling of the next one begins."""
    lists: list[List]


class Polled(msgspec.Struct):
    """Arrival times of events by name, and seconds of answers."""

    seen: dict[str, float]
    requests: int
    p50: float
    p99: float
    problems: list[str]


class _Metadata(msgspec.Struct):
    name: str


class _Listed(msgspec.Struct):
    metadata: _Metadata
    count: int


_decoder = msgspec.json.Decoder(list[_Listed])


def names(body: bytes) -> list[str]:
    """Return the names in a list; raise `ValueError` for other JSON or a count above 1."""
    events = _decoder.decode(body)
    for event in events:
        if event.count != 1:
            raise ValueError(f"{event.metadata.name} has count {event.count}, expected 1")
    return [event.metadata.name for event in events]


class _Connection(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self) -> None:
        self._answer: Answer | None = None
        self._done: asyncio.Future[tuple[Answer, float]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._answer is None or self._done is None or self._done.done():
            self.transport.abort()
            return
        try:
            if self._answer.add(data):
                self._done.set_result((self._answer, now))
        except ValueError as error:
            self._done.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ValueError(f"closed during an answer: {exc}"))

    async def send(self, request: bytes) -> tuple[Answer, float]:
        """Return the answer and the arrival time of its last byte."""
        self._answer = Answer(keep=True)
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._done


class _Poller:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._host = plan.address.removeprefix("http://")
        self._times: list[float] = []
        self.started = asyncio.Event()
        self.seen: dict[str, float] = {}
        self.problems: list[str] = []

    async def run(self) -> None:
        """Poll until all lists are complete."""
        async with asyncio.TaskGroup() as group:
            for each in self._plan.lists:
                nearly = asyncio.Event()
                group.create_task(self._guarded(each, nearly))
                await nearly.wait()

    def polled(self) -> Polled:
        times = self._times or [0.0]
        p50, p99 = (percentile(times, percent) for percent in (50, 99))
        return Polled(self.seen, len(self._times), p50, p99, self.problems)

    async def _guarded(self, each: List, nearly: asyncio.Event) -> None:
        try:
            await self._poll(each, nearly)
        except (OSError, ValueError) as error:  # includes msgspec's errors
            self.problems.append(f"{each.path}: {error}")
        finally:
            self.started.set()
            nearly.set()

    async def _poll(self, each: List, nearly: asyncio.Event) -> None:
        host, _, port = self._host.rpartition(":")
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(_Connection, host, int(port))
        try:
            await self._until_complete(connection, each, nearly)
        finally:
            transport.close()

    async def _until_complete(
        self, connection: _Connection, each: List, nearly: asyncio.Event
    ) -> None:
        headers: dict[str, str] = {}
        found = 0
        while found < each.listed:
            begun = time.monotonic()
            request = Request(each.path, headers=headers).head(self._host)
            answer, now = await connection.send(request)
            self._times.append(now - begun)
            assert answer.head is not None
            if answer.head.status == 200:
                found = self._note(answer.whole or b"", now)
                headers = {"If-None-Match": answer.head.headers["etag"]}
                if each.listed - found <= self._plan.ahead:
                    nearly.set()
            elif answer.head.status != 304:
                raise ValueError(f"status {answer.head.status}")
            self.started.set()
            await asyncio.sleep(max(0.0, begun + self._plan.interval - time.monotonic()))

    def _note(self, body: bytes, now: float) -> int:
        listed = names(body)
        for name in listed:
            self.seen.setdefault(name, now)
        return len(listed)


async def run() -> None:
    """Execute the commands of standard input until `stop`."""
    reader = await lines()
    poller = _Poller(msgspec.json.decode(await reader.readline(), type=Plan))
    polling = asyncio.create_task(poller.run())
    await poller.started.wait()
    answer()
    while command := (await reader.readline()).decode().split():
        if command[0] == "seen":
            answer(events=len(poller.seen))
            continue
        polling.cancel()
        Path(command[1]).write_bytes(msgspec.json.encode(poller.polled()))
        answer()
        return


def main() -> None:
    """Poll lists until standard input says `stop`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()
