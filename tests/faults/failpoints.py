"""A consumer that signals itself at a fail point: `python -m tests.faults.failpoints SPEC`.

SPEC is POINT:N:ACTION: at the N-th time that the process reaches POINT, ACTION is `kill` (SIGKILL)
or `stop` (SIGSTOP). The product has no fail points: this entry point wraps the calls between which
they lie, and the statements of a batch's transaction.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import asyncpg

POINTS = ("fetched", "begun", "offsets_set", "upserted", "commit_sent", "committed", "assigned")
"""After a fetch; after BEGIN; after the offsets are moved; before COMMIT, after it is sent, and
after its reply; after partitions are assigned."""

_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

FailpointHook = Callable[[str], None]
"""Receives the name of each point as the process reaches it."""


def signalling(spec: str) -> FailpointHook:
    """Return a hook that signals this process as `spec` says; ValueError if it is malformed."""
    point, _, rest = spec.partition(":")
    times, _, action = rest.partition(":")
    if point not in POINTS or not times.isdigit() or action not in _ACTIONS:
        raise ValueError(f"expected POINT:N:kill or POINT:N:stop, not {spec}")
    left = int(times)

    def hook(reached: str) -> None:
        nonlocal left
        if reached == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), _ACTIONS[action])

    return hook


@contextmanager
def hooked(hook: FailpointHook) -> Iterator[None]:
    """Call `hook` at each point of the consumers of this process while the context is open."""
    # Imported here: the harness uses the names above without the consumer's libraries.
    from execution_events.consumer.assignment import Assignment
    from execution_events.consumer.fetcher import BatchFetcher
    from execution_events.store.sql import load_queries

    move_offsets = load_queries("progress")["move_offsets"]
    assign, fetch_batch = Assignment.on_partitions_assigned, BatchFetcher.fetch
    fetch, execute = asyncpg.Connection.fetch, asyncpg.Connection.execute
    in_batch: set[Any] = set()
    """Connections in the transaction of a batch; others have transactions too."""

    def assigned(assignment: Assignment, partitions: Any) -> None:
        assign(assignment, partitions)
        hook("assigned")

    async def fetched(fetcher: BatchFetcher, *arguments: Any, **options: Any) -> Any:
        batch = await fetch_batch(fetcher, *arguments, **options)
        hook("fetched")
        return batch

    async def fetched_rows(connection: Any, query: str, *arguments: Any, **options: Any) -> Any:
        if query != move_offsets:
            return await fetch(connection, query, *arguments, **options)
        in_batch.add(connection)
        hook("begun")
        rows = await fetch(connection, query, *arguments, **options)
        # If another consumer has moved one of them, the batch is fenced.
        if all(row["moved"] for row in rows):
            hook("offsets_set")
        return rows

    async def executed(connection: Any, query: str, *arguments: Any, **options: Any) -> Any:
        if query != "COMMIT;" or connection not in in_batch:
            return await execute(connection, query, *arguments, **options)
        in_batch.discard(connection)
        hook("upserted")
        # The driver writes the statement before it waits for the first time.
        asyncio.get_running_loop().call_soon(hook, "commit_sent")
        status = await execute(connection, query, *arguments, **options)
        hook("committed")
        return status

    with ExitStack() as stack:
        for owner, name, wrapper in (
            (Assignment, "on_partitions_assigned", assigned),
            (BatchFetcher, "fetch", fetched),
            (asyncpg.Connection, "fetch", fetched_rows),
            (asyncpg.Connection, "execute", executed),
        ):
            stack.enter_context(patch.object(owner, name, wrapper))
        yield


def main() -> int:
    """Run `execution-events consumer` with the fail point of the command line."""
    from execution_events.cli.main import main as run_command

    [spec] = sys.argv[1:]
    with hooked(signalling(spec)):
        return run_command(["consumer"])


if __name__ == "__main__":
    sys.exit(main())
