"""Plans of load on a reader, and the transfer of one long list."""

from dataclasses import dataclass

from tests.benchmarks import servers, usage
from tests.benchmarks.load import Plan, Request
from tests.benchmarks.receiving import receive
from tests.benchmarks.requests import RequestSets
from tests.benchmarks.servers import Postgres, Serving
from tests.benchmarks.trees import THIS, Tree
from tests.support.databases import Database

_WARM = 0.5
"""Seconds before the clock starts, at most the length of the run."""


@dataclass(frozen=True)
class Streamed:
    """The transfer of the long list; MiB of the reader before it and its growth."""

    seconds: float
    before: float
    grown: float
    same: bool


def plan(
    server: Postgres,
    serving: Serving,
    requests: list[Request],
    connections: int,
    seconds: float,
    start: int = 0,
) -> Plan:
    """Return a plan that sends `requests` to a server, from number `start` on."""
    return Plan(
        address=serving.address,
        connections=connections,
        seconds=seconds,
        warm=min(_WARM, seconds),
        requests=requests,
        pid=serving.pid,
        postgres_pid=server.pid,
        start=start,
    )


async def stream(
    server: Postgres,
    database: Database,
    requests: RequestSets,
    pace: float | None,
    tree: Tree = THIS,
) -> Streamed:
    """Read the long list from a tree's new reader, in `pace` seconds or at full speed."""
    whole = requests.whole
    assert whole.length is not None
    async with servers.reader(server, database, tree) as reader:
        for each in requests.hot:
            await receive(reader.address, each.path)
        async with usage.growth(reader.pid) as growth:
            received = await receive(
                reader.address, whole.path, None if pace is None else whole.length / pace
            )
    same = (received.size, received.sha256) == (whole.length, whole.sha256)
    return Streamed(received.seconds, growth.before, growth.grown, same)
