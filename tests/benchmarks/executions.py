"""Time of lists of executions of a tenant, at their beginning and far from it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import urlencode

from msgspec import to_builtins as builtins

from execution_events.cli.progress import Progress
from execution_events.reader.execution_query import parse_execution_query
from execution_events.store.read.executions import ExecutionPosition
from tests.benchmarks import servers
from tests.benchmarks.dataset import settle
from tests.benchmarks.figures import Verdict, percentile, short
from tests.benchmarks.load import Request, Sample, measure
from tests.benchmarks.reading import plan
from tests.benchmarks.report import Report
from tests.benchmarks.requests import of_body
from tests.support.databases import administrator
from tests.support.executions import LARGE, SMALL, TENANTS, Execution, Executions, body, store
from tests.support.tokens import token_file

BAR = 10
"""p50 in milliseconds."""
PAGE = 50
_CALLERS = {"a large tenant": [LARGE], "a small tenant": [SMALL], "an operator": ["*"]}
"""Tokens and their namespaces."""

COLUMNS = (
    *("Lists", "depth", "executions", "p50 ms", "p99 ms", "answers/s", "PostgreSQL µs"),
)  # fmt: skip


class Case(NamedTuple):
    """A request, and the executions of its answer."""

    caller: str
    failed: bool
    depth: int
    request: Request
    executions: int

    @property
    def title(self) -> str:
        return f"{PAGE} newest {'failed ' * self.failed}of {self.caller}"


async def run(
    executions: int, depth: int, failures: Sequence[float], seconds: float, rounds: int
) -> Report:
    """Measure each list for each percentage of failures, one request at a time.

    `depth` is the number of newer executions, of all tenants for those of a small one.
    """
    rows: list[list[str]] = []
    verdicts: list[Verdict] = []
    notes = [
        f"{executions:,} executions of {TENANTS} tenants, written by COPY in the order of their"
        f" creation, eight at a time; a quarter are of the large tenant, a"
        f" {4 * (TENANTS - 1) // 3}th of the small one. Those that failed have one failure.",
        "The depth is that of the large tenant's executions, or else of all executions. A page of"
        " failures begins at that execution.",
        "One connection, one request at a time; each answer is compared with the expected bytes.",
    ]
    figures: dict[str, Any] = {}
    broken: list[str] = []
    async with servers.postgres() as server:
        for percent in failures:
            stored = Executions(executions, percent / 100, datetime.now(UTC).replace(microsecond=0))
            title = f"{short(percent)} % failures"
            async with AsyncExitStack() as stack:
                database = await stack.enter_async_context(server.database())
                async with administrator(database.administrator) as connection:
                    await store(connection, stored)
                await settle(database)
                tokens = server.log("tokens")
                tokens.write_text(token_file(_CALLERS))
                reader = await stack.enter_async_context(
                    servers.reader(server, database, tokens_file=str(tokens))
                )
                found = list(cases(stored, depth))
                samples: dict[str, list[Sample]] = {}
                progress = Progress(rounds * len(found))
                for number in range(rounds):
                    for done, case in enumerate(found):
                        progress.show(number * len(found) + done, f"runs; {title}")
                        load = plan(server, reader, [case.request], 1, seconds)
                        samples.setdefault(case.request.path + case.caller, []).append(
                            await measure(load)
                        )
                progress.end()
            rows.append([title, *[""] * (len(COLUMNS) - 1)])
            for case, each in zip(found, samples.values(), strict=True):
                p50 = percentile([sample.p50 for sample in each], 50) * 1000
                rows.append(
                    [
                        case.title,
                        f"{case.depth:,}",
                        str(case.executions),
                        short(round(p50, 2)),
                        short(round(percentile([s.p99 for s in each], 50) * 1000, 2)),
                        short(round(percentile([s.rate for s in each], 50))),
                        _postgres(each),
                    ]
                )
                verdicts.append(
                    Verdict(
                        f"{title}: {case.title}, depth {case.depth:,}", p50, BAR, "ms", at_most=True
                    )
                )
                broken += [f"{case.title}: {s.failure}" for s in each if s.wrong]
            figures[title] = {
                f"{case.title}, depth {case.depth}": builtins(each)
                for case, each in zip(found, samples.values(), strict=True)
            }
    parameters: dict[str, Any] = {"executions": executions, "depth": depth}
    parameters["failures"] = list(failures)
    parameters |= {"rounds": rounds, "seconds": seconds}
    return Report("executions", parameters, COLUMNS, rows, verdicts, notes, figures, broken)


def _postgres(samples: Sequence[Sample]) -> str:
    answers = max(1, sum(sample.answers for sample in samples))
    return f"{sum(sample.postgres_cpu for sample in samples) / answers * 1e6:.0f}"


def cases(stored: Executions, depth: int) -> Iterator[Case]:
    """Yield the lists of each caller, of all and of those that failed, at 0 and at `depth`."""
    everything = list(stored.descending())
    for caller, namespaces in _CALLERS.items():
        own = [each for each in everything if namespaces in ([each.namespace], ["*"])]
        counted = own if namespaces == [LARGE] else everything
        last = counted[min(depth, len(counted) - 1) - 1]
        for failed in (False, True):
            listed = [each for each in own if each.is_failed or not failed]
            for after in (None, last):
                following: Iterable[Execution] = (
                    each for each in listed if after is None or each < after
                )
                page = list(islice(following, PAGE))
                yield Case(
                    caller,
                    failed,
                    depth if after else 0,
                    _request(caller, failed, after, page),
                    len(page),
                )


def _request(caller: str, failed: bool, after: Execution | None, page: list[Execution]) -> Request:
    parameters = [("limit", str(PAGE)), *([("state", "failed")] if failed else [])]
    if after is not None:
        # As a client has it that walks there from page to page.
        query = parse_execution_query(urlencode(parameters).encode())
        key = ExecutionPosition(after.created_at, after.execution_id, after.namespace)
        parameters.append(("marker", query.marker_after(key)))
    request = of_body(f"/v1/executions?{urlencode(parameters)}", body(page))
    return Request(
        request.path,
        headers={"X-Auth-Token": caller},
        length=request.length,
        begin=request.begin,
        sha256=request.sha256,
    )
