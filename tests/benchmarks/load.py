"""Requests over connections that are kept, each as soon as the last is answered.

    python -m tests.benchmarks.load

A process of its own: reads a `Plan` as JSON from standard input, and prints a `Sample` as JSON.
It does as little as it can, for it shares the cores: an answer's length is its Content-Length, and
of its body the first bytes alone are looked at. The whole body is compared of the first answer.
"""

import asyncio
import hashlib
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import cramjam
import msgspec
import uvloop

from tests.benchmarks import usage
from tests.benchmarks.figures import percentile
from tests.benchmarks.worker import measured

BEGIN = 96
"""Bytes of each body that are compared: the first event's name is in them."""
_PATIENCE = 30
"""Seconds for the last answers."""
_ERRORS_KEPT = 5

DECODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": lambda body: zlib.decompress(body, wbits=31),
    "zstd": lambda body: bytes(cramjam.zstd.decompress(body)),
}


class Ask(msgspec.Struct, frozen=True):
    """A request, and what its answer must be."""

    path: str
    status: int = 200
    headers: dict[str, str] = {}
    length: int | None = None
    """Of the body; None where it is only known that it never changes."""
    begin: str = ""
    """With what the body begins; at most `BEGIN` bytes."""
    sha256: str | None = None
    """Of the whole body, decoded."""

    def head(self, host: str) -> bytes:
        """The request's bytes."""
        fields = {"Host": host} | self.headers
        lines = [f"GET {self.path} HTTP/1.1", *(f"{name}: {fields[name]}" for name in fields)]
        return "\r\n".join([*lines, "", ""]).encode()


class Plan(msgspec.Struct, frozen=True):
    """What to send: `asks` in turn, from number `start` on, again from the first after the last.

    What is answered in the first `warm` seconds does not count.
    """

    address: str
    connections: int
    seconds: float
    warm: float
    asks: list[Ask]
    pid: int
    """The server's."""
    postgres_pid: int
    start: int = 0


class Sample(msgspec.Struct, frozen=True):
    """What was measured while it counted. Times are seconds; CPU is of all threads."""

    answers: int
    seconds: float
    p50: float
    p99: float
    server_cpu: float
    postgres_cpu: float
    client_cpu: float
    asked: int
    """Requests in all, those that do not count too."""
    wrong: int
    errors: list[str]
    """The first of what was wrong."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


class Head(NamedTuple):
    """The status line and the headers of an answer; names are in lower case."""

    status: int
    headers: dict[str, str]

    @classmethod
    def of(cls, head: bytes) -> "Head":
        """`head` is without its last line break."""
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        return cls(int(first[9:12]), {name.lower(): value.strip() for name, _, value in fields})

    @property
    def length(self) -> int:
        """Of the body. Raises `ValueError` where it is not stated."""
        if self.status == 304:
            return 0
        if "content-length" not in self.headers:
            raise ValueError(f"an answer of status {self.status} without Content-Length")
        return int(self.headers["content-length"])


class Answer:
    """One answer, as its bytes come in. `whole` is its body where that was to be kept."""

    def __init__(self, keep: bool) -> None:
        self.head: Head | None = None
        self.length = 0
        self.begin = b""
        self._pieces: list[bytes] | None = [] if keep else None
        self._unparsed = b""
        self._left = 0

    @property
    def whole(self) -> bytes | None:
        return None if self._pieces is None else b"".join(self._pieces)

    def add(self, data: bytes) -> bool:
        """Take bytes; whether the answer is complete."""
        if self.head is None:
            data = self._unparsed + data
            head, found, body = data.partition(b"\r\n\r\n")
            if not found:
                self._unparsed = data
                return False
            self.head = Head.of(head)
            self.length = self._left = self.head.length
            data = body
        if len(data) > self._left:
            raise ValueError("more bytes than Content-Length says")
        if len(self.begin) < BEGIN:
            self.begin += data[: BEGIN - len(self.begin)]
        if self._pieces is not None:
            self._pieces.append(data)
        self._left -= len(data)
        return not self._left


class Checks:
    """Holds answers to what they must be."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self._asks = asks
        self._lengths = {n: ask.length for n, ask in enumerate(asks) if ask.length is not None}
        self._begins = [ask.begin.encode() for ask in asks]

    def problem(self, number: int, answer: Answer) -> str | None:
        """What is wrong with the answer to ask `number`."""
        ask = self._asks[number]
        assert answer.head is not None
        if answer.head.status != ask.status:
            return f"{ask.path}: status {answer.head.status}, not {ask.status}"
        if answer.length != self._lengths.setdefault(number, answer.length):
            return f"{ask.path}: {answer.length} bytes, not {self._lengths[number]}"
        encoding = answer.head.headers.get("content-encoding", "")
        if not encoding and not answer.begin.startswith(self._begins[number]):
            return f"{ask.path}: another body"
        whole = answer.whole
        if whole is not None and ask.sha256 is not None:
            decode = DECODERS.get(encoding)
            if decode is None or hashlib.sha256(decode(whole)).hexdigest() != ask.sha256:
                return f"{ask.path}: another body, as a whole"
        return None


async def measure(plan: Plan) -> Sample:
    """Run a plan in a process of its own."""
    found = await measured("-m", "tests.benchmarks.load", stdin=msgspec.json.encode(plan))
    return msgspec.convert(found, Sample)


class _Load:
    """What the connections share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.host = plan.address.removeprefix("http://")
        self.heads = [ask.head(self.host) for ask in plan.asks]
        self.checks = Checks(plan.asks)
        self.asked = 0
        self.wrong = 0
        self.errors: list[str] = []
        self.times: list[float] | None = None
        """Seconds of each answer, while it counts."""
        self.ended = False

    def next(self) -> int | None:
        if self.ended:
            return None
        number = (self.plan.start + self.asked) % len(self.heads)
        self.asked += 1
        return number

    def fail(self, problem: str) -> None:
        self.wrong += 1
        if len(self.errors) < _ERRORS_KEPT:
            self.errors.append(problem)


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._number: int | None = None
        self._begun = 0.0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        if self._number is None:
            self._load.fail("bytes that nobody asked for")
            self._transport.abort()
            return
        try:
            if not self._answer.add(data):
                return
        except ValueError as error:
            self._load.fail(str(error))
            self._number = None
            self._transport.abort()
            return
        load = self._load
        if load.times is not None:
            load.times.append(time.perf_counter() - self._begun)
        if problem := load.checks.problem(self._number, self._answer):
            load.fail(problem)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._number is not None:
            self._load.fail(f"a connection was closed in an answer: {exc}")
        self.closed.set_result(None)

    def _ask(self) -> None:
        self._answer = Answer(keep=not self._load.asked)
        self._number = self._load.next()
        if self._number is None:
            self._transport.close()
            return
        self._begun = time.perf_counter()
        self._transport.write(self._load.heads[self._number])


async def run(plan: Plan) -> Sample:
    """Send, count and check."""
    load = _Load(plan)
    host, _, port = load.host.rpartition(":")
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: load.fail(str(context)))
    connections = [
        (await loop.create_connection(lambda: _Connection(load), host, int(port)))[1]
        for _ in range(plan.connections)
    ]
    await asyncio.sleep(plan.warm)
    begun, before = time.perf_counter(), _used(plan)
    load.times = []
    await asyncio.sleep(plan.seconds)
    times, load.times = load.times, None
    seconds, after = time.perf_counter() - begun, _used(plan)
    load.ended = True
    _, late = await asyncio.wait([each.closed for each in connections], timeout=_PATIENCE)
    if late:
        load.fail(f"{len(late)} answers not within {_PATIENCE} s")
    if not times:
        load.fail("no answer within the time")
    server, postgres, client = (end - start for start, end in zip(before, after, strict=True))
    return Sample(
        answers=len(times),
        seconds=seconds,
        p50=percentile(times, 50) if times else 0,
        p99=percentile(times, 99) if times else 0,
        server_cpu=server,
        postgres_cpu=postgres,
        client_cpu=client,
        asked=load.asked,
        wrong=load.wrong,
        errors=load.errors,
    )


def _used(plan: Plan) -> tuple[float, float, float]:
    return usage.cpu(plan.pid), usage.cpu_of_tree(plan.postgres_pid), time.process_time()


def main() -> None:
    """Measure, and print the sample."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sample = runner.run(run(plan))
    print(msgspec.json.encode(sample).decode())


if __name__ == "__main__":
    main()
