"""Running readers; every response is validated against the OpenAPI document."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import cramjam
import httpx
from jsonschema import Draft202012Validator

from execution_events.events import Occurrence
from execution_events.reader.service import run_reader
from execution_events.store.write.batches import BatchWriter
from tests.support import databases
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE
from tests.support.golden import SCHEMAS
from tests.support.records import EPOCH, batch, log, occurrence
from tests.support.servers import Servers

EVENTS = "/v1/executions/execution-1/events"
EXECUTIONS = "/v1/executions"

OPENAPI = json.loads((SCHEMAS / "openapi.json").read_text(encoding="utf-8"))
OPERATIONS = OPENAPI["paths"]["/v1/executions/{execution_id}/events"]
EXECUTIONS_OPERATIONS = OPENAPI["paths"][EXECUTIONS]


class Reader(NamedTuple):
    """A running reader with clients of its two ports."""

    api: httpx.AsyncClient
    management: httpx.AsyncClient
    stop: asyncio.Event
    """Stops the reader when set."""

    async def get(self, path: str, **options: Any) -> httpx.Response:
        """Return a response that conforms to the OpenAPI document."""
        return await self.request("GET", path, **options)

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = await self.api.request(method, path, **options)
        check_contract(response)
        return response

    async def events(
        self, path: str = EVENTS, params: Mapping[str, object] | None = None
    ) -> list[dict[str, Any]]:
        response = await self.get(path, params=params)
        assert response.status_code == 200, response.text
        events: list[dict[str, Any]] = response.json()
        return events

    async def executions(
        self, params: Mapping[str, object] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Return a page of executions."""
        response = await self.get(EXECUTIONS, params=params, **options)
        assert response.status_code == 200, response.text
        executions: list[dict[str, Any]] = response.json()
        return executions

    async def names(self, **params: object) -> list[str]:
        """Return the names of the listed events, in order."""
        return [event["metadata"]["name"] for event in await self.events(params=params)]


def check_contract(response: httpx.Response) -> None:
    """Validate status, headers, type and body against the OpenAPI document."""
    method = response.request.method.lower()
    is_executions = response.request.url.path == EXECUTIONS
    operations = EXECUTIONS_OPERATIONS if is_executions else OPERATIONS
    documented = resolve(operations.get(method, operations["get"])["responses"])
    assert str(response.status_code) in documented, response.text
    answer = resolve(documented[str(response.status_code)])
    for name, header in answer.get("headers", {}).items():
        if resolve(header).get("required") or name in response.headers:
            schema = resolve(resolve(header)["schema"])
            value = response.headers[name]
            validate(int(value) if schema.get("type") == "integer" else value, schema)
    if method == "head" or response.status_code == 304:
        assert response.content == b""
    else:
        content = answer["content"][response.headers["Content-Type"]]
        body = decoded(response)
        if response.headers["Content-Type"] == "application/json":
            validate(json.loads(body), content["schema"])
        else:
            assert body == b"" or body.endswith(b"\n")
            schema = EXECUTION_LIST if is_executions else EVENT_LIST
            validate([json.loads(line) for line in body.splitlines()], schema)


def decoded(response: httpx.Response) -> bytes:
    """Return the decoded body; httpx decodes gzip but not zstd."""
    if response.headers.get("Content-Encoding") == "zstd":
        return bytes(cramjam.zstd.decompress(response.content))
    return response.content


EVENT_LIST = {"$ref": "#/components/schemas/EventList"}
EXECUTION_LIST = {"$ref": "#/components/schemas/ExecutionList"}


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    target: dict[str, Any] = OPENAPI
    for part in node["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return target


def validate(instance: object, schema: dict[str, Any]) -> None:
    Draft202012Validator({**schema, "components": OPENAPI["components"]}).validate(instance)


class _Started(logging.Handler):
    """A log handler that waits for the addresses of a starting reader."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.fields: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    def emit(self, record: logging.LogRecord) -> None:
        if record.__dict__.get("event") == "reader_started":
            self.fields.set_result(record.__dict__["fields"])


@asynccontextmanager
async def reading(database_url: str, **given: Any) -> AsyncIterator[Reader]:
    """Run a reader with these settings; at the end, stop it and raise its error, if any."""
    given = {"reader_port": 0, "management_port": 0, "drain_delay": 0, **given}
    settings = configured(database_url=database_url, **given)
    stop = asyncio.Event()
    service = asyncio.create_task(run_reader(settings, stop))
    try:
        fields = await addresses(service)
        async with (
            httpx.AsyncClient(base_url=fields["address"], timeout=DEADLINE) as api,
            httpx.AsyncClient(base_url=fields["management"], timeout=DEADLINE) as management,
        ):
            yield Reader(api, management, stop)
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE):
            await service


@asynccontextmanager
async def reading_only(
    servers: Servers, template_database: str, *occurrences: Occurrence, **given: Any
) -> AsyncIterator[Reader]:
    """Run a reader of a database with these events, for tests that change nothing in it."""
    async with databases.cloned(servers.administrator_url, template_database) as database:
        if occurrences:
            async with BatchWriter(database.writer, "events") as writer:
                await writer.begin_partition(0, 0, "cluster")
                await writer.store(batch(log(occurrences)))
        async with reading(database.reader, **given) as reader:
            yield reader


async def addresses(service: asyncio.Task[None]) -> dict[str, str]:
    """Return the addresses of a starting reader, or raise its error."""
    logger = logging.getLogger("execution_events.reader.service")
    level, started = logger.level, _Started()
    logger.addHandler(started)
    logger.setLevel(logging.INFO)
    try:
        waiting: list[asyncio.Future[Any]] = [service, started.fields]
        await asyncio.wait(waiting, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        if service.done():
            service.result()
        return started.fields.result()
    finally:
        logger.removeHandler(started)
        logger.setLevel(level)


async def transactions(administrator: asyncpg.Connection) -> int:
    """Return the number of open transactions of readers in the administrator's database."""
    count: int = await administrator.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND usename = 'execution_events_reader' AND state <> 'idle'"
    )
    return count


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def named(name: str, seconds: float = 0, **fields: object) -> Occurrence:
    moment = at(seconds)
    return occurrence(
        **{"name": name, "first_timestamp": moment, "last_timestamp": moment, **fields}
    )
