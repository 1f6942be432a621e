"""Reference servers for the reader, run with the same HTTP server and limits.

    python -m tests.benchmarks.reference static FILE
    python -m tests.benchmarks.reference naive TABLE

`static` answers every request with the bytes of a file. `naive` selects an execution's events in
the order of lists, builds dicts and encodes them; settings are in the environment.
"""

import asyncio
import os
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from execution_events import settings as settings_module
from execution_events.cli.signals import run_until_stopped
from execution_events.logs import Logger, configure_logging
from execution_events.web.server import serve

POOL = 8
"""Connections to PostgreSQL: the reader's number."""
PATH = "/v1/executions/{execution_id}/events"
COLUMNS = (
    *("execution_id", "namespace", "name", "object_name", "object_namespace", "reason", "message"),
    *("first_timestamp", "last_timestamp", "count", "type", "elem_type", "elem_id", "action_name"),
)
"""The columns of an event in `ops.events_v1`."""
HEADERS = {
    "Cache-Control": "private, no-cache",
    "Vary": "Accept, Accept-Encoding, Authorization, X-Auth-Token",
    "ETag": 'W/"AAAAAAAAAAAAAAAAAAAAAA"',
    "X-Request-Id": "0" * 32,
}
"""The same number of bytes as the reader's."""

_log = Logger("execution_events.benchmarks")


def create_table(table: str) -> str:
    """Return the statement that creates a plain table of events."""
    return f"""
        CREATE TABLE {table} (
            execution_id text NOT NULL, namespace text NOT NULL, name text NOT NULL,
            object_name text NOT NULL, object_namespace text NOT NULL,
            reason text NOT NULL, message text NOT NULL,
            first_timestamp timestamptz NOT NULL, last_timestamp timestamptz NOT NULL,
            count bigint NOT NULL, type text NOT NULL, elem_type text NOT NULL,
            elem_id text NOT NULL, action_name text NOT NULL,
            PRIMARY KEY (execution_id, namespace, name)
        )
    """


def body(rows: Iterable[Any]) -> bytes:
    """Return a list in the API's format."""
    return msgspec.json.encode(
        [
            {
                "metadata": {"name": row["name"], "namespace": row["namespace"]},
                "involvedObject": {
                    "name": row["object_name"],
                    "namespace": row["object_namespace"],
                },
                "reason": row["reason"],
                "message": row["message"],
                # strftime and isoformat are slower.
                "firstTimestamp": row["first_timestamp"].replace(microsecond=0),
                "lastTimestamp": row["last_timestamp"].replace(microsecond=0),
                "count": row["count"],
                "type": row["type"],
                "elemType": row["elem_type"],
                "elemId": row["elem_id"],
                "actionName": row["action_name"],
            }
            for row in rows
        ]
    )


def static(content: bytes) -> Starlette:
    """Return an application that answers with `content`."""

    async def events(_: Request) -> Response:
        return Response(content, headers=HEADERS, media_type="application/json")

    return Starlette(routes=[Route(PATH, events)])


def naive(pool: asyncpg.Pool, table: str) -> Starlette:
    """Return an application that answers from `table`."""
    query = (
        f"SELECT {', '.join(COLUMNS)} FROM {table} WHERE execution_id = $1"
        " ORDER BY first_timestamp, name, namespace"
    )

    async def events(request: Request) -> Response:
        rows = await pool.fetch(query, request.path_params["execution_id"])
        return Response(body(rows), headers=HEADERS, media_type="application/json")

    return Starlette(routes=[Route(PATH, events)])


async def run(way: str, argument: str, stop: asyncio.Event) -> None:
    """Serve until `stop` is set."""
    async with AsyncExitStack() as stack:
        if way == "static":
            app = static(await asyncio.to_thread(Path(argument).read_bytes))
        else:
            url = settings_module.load(os.environ).database.require_url()
            pool = await stack.enter_async_context(
                asyncpg.create_pool(
                    url, min_size=POOL, max_size=POOL, server_settings={"timezone": "UTC"}
                )
            )
            app = naive(pool, argument)
        _log.info("reference_started", address=await stack.enter_async_context(serve(app)))
        await stop.wait()


def main() -> int:
    """Serve until SIGTERM."""
    way, argument = sys.argv[1:]
    configure_logging("json", "info", sys.stderr)
    return run_until_stopped(lambda stop: run(way, argument, stop))


if __name__ == "__main__":
    sys.exit(main())
