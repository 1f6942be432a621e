"""A reader under the load of lists, and one that serves a long one."""

from dataclasses import dataclass

from tests.benchmarks import servers, usage
from tests.benchmarks.asks import Workload
from tests.benchmarks.load import Ask, Plan
from tests.benchmarks.receiving import receive
from tests.benchmarks.servers import Postgres, Serving
from tests.support.databases import Database

_WARM = 0.5
"""Seconds before the clock starts, at most as many as it runs."""


@dataclass(frozen=True)
class Streamed:
    """The long list as one client took it; MiB of the reader, before and by how much it grew."""

    seconds: float
    before: float
    grown: float
    same: bool


def plan(
    server: Postgres,
    serving: Serving,
    asks: list[Ask],
    connections: int,
    seconds: float,
    start: int = 0,
) -> Plan:
    """Ask a server for `asks` for some seconds, from number `start` on."""
    return Plan(
        address=serving.address,
        connections=connections,
        seconds=seconds,
        warm=min(_WARM, seconds),
        asks=asks,
        pid=serving.pid,
        postgres_pid=server.pid,
        start=start,
    )


async def stream(
    server: Postgres, database: Database, asks: Workload, pace: float | None
) -> Streamed:
    """Read the long list, in `pace` seconds or at once, from a reader that has done little."""
    whole = asks.whole
    assert whole.length is not None
    async with servers.reader(server, database) as reader:
        for each in asks.hot:
            await receive(reader.address, each.path)
        async with usage.growth(reader.pid) as growth:
            received = await receive(
                reader.address, whole.path, None if pace is None else whole.length / pace
            )
    same = (received.size, received.sha256) == (whole.length, whole.sha256)
    return Streamed(received.seconds, growth.before, growth.grown, same)
