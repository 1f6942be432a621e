"""Load client: each of its persistent connections sends a request as soon as the last is answered.

    python -m tests.benchmarks.load

Reads a `Plan` as JSON from standard input and prints a `Sample` as JSON. It shares the cores with
the server, so it does little work: it takes an answer's length from Content-Length and compares
only the first bytes of the body; only the first answer is compared as a whole.
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
"""Bytes of each body that are compared; they contain the first event's name."""
_TIMEOUT = 30
"""Seconds for the last answers."""
_ERROR_LIMIT = 5

DECODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": lambda body: zlib.decompress(body, wbits=31),
    "zstd": lambda body: bytes(cramjam.zstd.decompress(body)),
}


class Request(msgspec.Struct, frozen=True):
    """A request and the answer that it must get."""

    path: str
    status: int = 200
    headers: dict[str, str] = {}
    length: int | None = None
    """Of the body; None if unknown but constant."""
    begin: str = ""
    """The first bytes of the body, at most `BEGIN`."""
    sha256: str | None = None
    """Of the whole body, decoded."""

    def head(self, host: str) -> bytes:
        """Return the request's bytes."""
        fields = {"Host": host} | self.headers
        lines = [f"GET {self.path} HTTP/1.1", *(f"{name}: {fields[name]}" for name in fields)]
        return "\r\n".join([*lines, "", ""]).encode()


class Plan(msgspec.Struct, frozen=True):
    """Requests to send in turn, from number `start` on and cyclically.

    Answers in the first `warm` seconds do not count.
    """

    address: str
    connections: int
    seconds: float
    warm: float
    requests: list[Request]
    pid: int
    """Of the server."""
    postgres_pid: int
    start: int = 0


class Sample(msgspec.Struct, frozen=True):
    """Figures after the warm-up. Times are seconds; CPU is of all threads."""

    answers: int
    seconds: float
    p50: float
    p99: float
    server_cpu: float
    postgres_cpu: float
    client_cpu: float
    sent: int
    """All requests, those of the warm-up included."""
    wrong: int
    errors: list[str]
    """The first errors."""

    @property
    def failure(self) -> str:
        """The number of wrong answers and the first errors."""
        errors = "; ".join(self.errors)
        return f"{self.wrong:,} of {self.sent:,} answers wrong: {errors}"

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


class Head(NamedTuple):
    """Status and headers of an answer; header names are in lower case."""

    status: int
    headers: dict[str, str]

    @classmethod
    def of(cls, head: bytes) -> "Head":
        """Parse a head without its last line break."""
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        return cls(int(first[9:12]), {name.lower(): value.strip() for name, _, value in fields})

    @property
    def length(self) -> int:
        """Bytes of the body. Raises `ValueError` without Content-Length."""
        if self.status == 304:
            return 0
        if "content-length" not in self.headers:
            raise ValueError(f"an answer of status {self.status} without Content-Length")
        return int(self.headers["content-length"])


class Answer:
    """One answer, parsed as its bytes arrive. `whole` is its body if `keep` was set."""

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
        """Take bytes and return true if the answer is complete."""
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
    """Comparison of answers with the expected ones."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._lengths = {
            n: request.length for n, request in enumerate(requests) if request.length is not None
        }
        self._begins = [request.begin.encode() for request in requests]

    def problem(self, number: int, answer: Answer) -> str | None:
        """Return the error in the answer to request `number`, or None."""
        request = self._requests[number]
        assert answer.head is not None
        if answer.head.status != request.status:
            return f"{request.path}: status {answer.head.status}, not {request.status}"
        if answer.length != self._lengths.setdefault(number, answer.length):
            return f"{request.path}: {answer.length} bytes, not {self._lengths[number]}"
        encoding = answer.head.headers.get("content-encoding", "")
        if not encoding and not answer.begin.startswith(self._begins[number]):
            return f"{request.path}: the body begins differently"
        whole = answer.whole
        if whole is not None and request.sha256 is not None:
            decode = DECODERS.get(encoding)
            if decode is None or hashlib.sha256(decode(whole)).hexdigest() != request.sha256:
                return f"{request.path}: the body differs"
        return None


async def measure(plan: Plan) -> Sample:
    """Run a plan in a process of its own and return the figures."""
    found = await measured("-m", "tests.benchmarks.load", stdin=msgspec.json.encode(plan))
    return msgspec.convert(found, Sample)


class _Load:
    """State that the connections share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.host = plan.address.removeprefix("http://")
        self.heads = [request.head(self.host) for request in plan.requests]
        self.checks = Checks(plan.requests)
        self.sent = 0
        self.wrong = 0
        self.errors: list[str] = []
        self.times: list[float] | None = None
        """Seconds of each answer, None outside the measurement."""
        self.ended = False

    def next(self) -> int | None:
        if self.ended:
            return None
        number = (self.plan.start + self.sent) % len(self.heads)
        self.sent += 1
        return number

    def fail(self, problem: str) -> None:
        self.wrong += 1
        if len(self.errors) < _ERROR_LIMIT:
            self.errors.append(problem)


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._number: int | None = None
        self._begun = 0.0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        if self._number is None:
            self._load.fail("bytes without a request")
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
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._number is not None:
            self._load.fail(f"a connection was closed during an answer: {exc}")
        self.closed.set_result(None)

    def _send(self) -> None:
        self._answer = Answer(keep=not self._load.sent)
        self._number = self._load.next()
        if self._number is None:
            self._transport.close()
            return
        self._begun = time.perf_counter()
        self._transport.write(self._load.heads[self._number])


async def run(plan: Plan) -> Sample:
    """Send requests for the plan's time and return the figures."""
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
    _, late = await asyncio.wait([each.closed for each in connections], timeout=_TIMEOUT)
    if late:
        load.fail(f"{len(late)} answers missing after {_TIMEOUT} s")
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
        sent=load.sent,
        wrong=load.wrong,
        errors=load.errors,
    )


def _used(plan: Plan) -> tuple[float, float, float]:
    return usage.cpu(plan.pid), usage.cpu_of_tree(plan.postgres_pid), time.process_time()


def main() -> None:
    """Measure and print the sample."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sample = runner.run(run(plan))
    print(msgspec.json.encode(sample).decode())


if __name__ == "__main__":
    main()
