"""Watchers cut between any two bytes resume without a loss; unbroken ones miss nothing."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

from tests.support.consumers import DEADLINE
from tests.support.databases import Database
from tests.support.flow import EXECUTIONS, FILTERS, NAMESPACES, Flow
from tests.support.readers import Reader, reading
from tests.support.sse import Parser
from tests.support.tokens import token_file
from tests.support.watching import Key, Message, Watcher, keyed

RESUMPTIONS = 500
TOKENS = {"all": list(NAMESPACES), "one": [NAMESPACES[0]]}


@pytest.fixture
def rng() -> Random:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return Random(seed)


@pytest.fixture
async def flow(database: Database, rng: Random) -> AsyncIterator[Flow]:
    async with Flow.open(database, rng) as flow:
        await flow.begin()
        yield flow


@pytest.fixture
async def guarded(database: Database, tmp_path: Path) -> AsyncIterator[Reader]:
    path = tmp_path / "tokens.json"
    path.write_text(token_file(TOKENS))
    async with reading(
        database.reader,
        tokens_file=str(path),
        reader_max_streams=200,
        reader_max_streams_per_token=200,
    ) as reader:
        yield reader


class Client:
    """A watcher of some events of one execution, and the changes it must see."""

    def __init__(self, execution_id: str, token: str, number: int) -> None:
        self.watcher = Watcher()
        self.params, self._selects = FILTERS[number]
        self.headers = {"X-Auth-Token": token}
        self.path = f"/v1/executions/{execution_id}/events"
        self._execution_id = execution_id
        self._namespaces = TOKENS[token]

    @property
    def last(self) -> set[Key]:
        """The events that end its watch."""
        return {(namespace, "last") for namespace in self._namespaces}

    @property
    def has_seen_the_end(self) -> bool:
        watcher = self.watcher
        return self.last <= watcher.events.keys() and bool(watcher.seen[-1].id)

    async def listed(self, reader: Reader) -> dict[Key, Any]:
        response = await reader.get(self.path, params=self.params, headers=self.headers)
        assert response.status_code == 200
        return keyed(response.json())

    def counts(self) -> dict[Key, list[int]]:
        """Return the sequence of counts that it saw of each event."""
        counts: dict[Key, list[int]] = {}
        for message in self.watcher.seen:
            if message.kind == "message":
                metadata = message.data["metadata"]
                key = metadata["namespace"], metadata["name"]
                counts.setdefault(key, []).append(message.data["count"])
        return counts

    def check(self, flow: Flow) -> int:
        """Check that it saw every change or a later one of the same event; return their number."""
        seen = {key: max(counts) for key, counts in self.counts().items()}
        left: set[Key] = set()
        checked = 0
        for execution_id, key, count, latest in reversed(flow.states):
            if execution_id != self._execution_id or key[0] not in self._namespaces:
                continue
            # If it has left the filter since, that is a later change.
            if not self._selects(latest):
                left.add(key)
            elif key not in left:
                assert seen.get(key, 0) >= count, (self.params, key, count)
                checked += 1
        return checked


def clients() -> list[Client]:
    numbers = range(len(FILTERS))
    return [
        *(Client(EXECUTIONS[0], "all", number) for number in numbers),
        *(Client(EXECUTIONS[1], "one", number) for number in numbers),
    ]


class Cut(NamedTuple):
    """The end of a connection."""

    resumed: bool
    """The watch had resumed and received something."""
    within: bool
    """The cut was inside a message."""


async def watch_for_a_moment(reader: Reader, client: Client, rng: Random) -> Cut:
    """Connect, read for a random number of bytes or a random time, and cut the connection."""
    most_bytes = rng.choice([rng.randrange(700), rng.randrange(5000), rng.randrange(100_000)])
    watcher, url = client.watcher, reader.api.base_url
    lines = [
        # Its body is not chunked: all bytes are those of messages.
        f"GET {client.path}?{urlencode(client.params)} HTTP/1.0",
        "Accept: text/event-stream",
        *(f"{name}: {value}" for name, value in client.headers.items()),
    ]
    if watcher.id:
        lines.append(f"Last-Event-ID: {watcher.id}")
    source, sink = await asyncio.open_connection(url.host, url.port)
    content = b""
    try:
        sink.write("\r\n".join([*lines, "", ""]).encode())
        with suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0, 0.3)):
                while piece := await source.read(most_bytes - len(content)):
                    content += piece
    finally:
        sink.transport.abort()
    head, _, body = content.partition(b"\r\n\r\n")
    assert not head or head.startswith(b"HTTP/1.1 200 OK"[: len(head)]), head
    resumed, parser = bool(watcher.id and body), Parser(watcher.id)
    for message in parser.feed(body):
        # All changes that it missed are stored, so no list is sent again.
        assert not (resumed and message.event == "reset")
        watcher.take(Message.of(message))
    watcher.id = parser.last_id
    return Cut(resumed, within=not body.endswith(b"\n\n"))


async def test_watchers_cut_at_any_byte_converge_on_the_list(
    guarded: Reader, flow: Flow, rng: Random
) -> None:
    cuts: list[Cut] = []
    watching = clients()

    def goes_on() -> bool:
        return sum(cut.resumed for cut in cuts) < RESUMPTIONS

    async def cut_and_resumed(client: Client) -> None:
        while goes_on():
            cuts.append(await watch_for_a_moment(guarded, client, rng))

    async def written() -> None:
        await asyncio.gather(*(flow.write(number, goes_on) for number in (0, 1)))
        await flow.end()

    await asyncio.gather(written(), *map(cut_and_resumed, watching))
    checked = 0
    for client in watching:
        watcher = client.watcher
        resumed = bool(watcher.id)
        async with watcher.watching(
            guarded.api, client.path, client.params, client.headers
        ) as watch:
            while not client.has_seen_the_end:
                [message] = await watch.next()
                assert not (resumed and message.kind == "reset")
        assert watcher.events == await client.listed(guarded)
        # A count may repeat after a cut, but never decreases.
        assert all(counts == sorted(counts) for counts in client.counts().values())
        checked += client.check(flow)
    gone = sum(m.kind == "gone" for client in watching for m in client.watcher.seen)
    within = sum(cut.resumed and cut.within for cut in cuts)
    print(f"{len(cuts)} cuts, {within} within, {flow.batches} batches, {checked}, {gone} gone")
    assert within > RESUMPTIONS / 10
    assert gone
    assert checked > RESUMPTIONS


async def test_an_unbroken_watch_repeats_no_state(guarded: Reader, flow: Flow, rng: Random) -> None:
    """Watches start while events arrive, so that the list and the changes meet at any point."""
    watching = [client for _ in range(8) for client in clients()]
    begun = 0

    async def watched(client: Client) -> None:
        nonlocal begun
        async with (
            asyncio.timeout(DEADLINE),
            client.watcher.watching(
                guarded.api, client.path, client.params, client.headers
            ) as watch,
        ):
            await watch.next()
            begun += 1
            while not client.has_seen_the_end:
                await watch.next()

    async def written() -> None:
        await asyncio.gather(
            *(flow.write(n, lambda: begun < len(watching) or flow.batches < 150) for n in (0, 1))
        )
        await flow.end()

    async def begin() -> None:
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(watching):
                await flow.until(2 * number)
                group.create_task(watched(client))

    await asyncio.gather(written(), begin())
    for client in watching:
        kinds = [message.kind for message in client.watcher.seen]
        assert kinds.count("reset") == 1
        assert kinds[0] == "reset"
        assert client.watcher.events == await client.listed(guarded)
        for key, counts in client.counts().items():
            assert all(a < b for a, b in pairwise(counts)), (key, counts)
        client.check(flow)
