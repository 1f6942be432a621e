"""Plausible mistakes that a server answers: the message, the exit code and the next step.

`tests/unit/test_mistakes.py` has those that no server is needed for.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from execution_events.kafka.topic import open_admin
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE
from tests.support.databases import Database
from tests.support.processes import COMMAND, environment


class Mistake(NamedTuple):
    """A command with a role's login, what is changed in its URL, and the lines that explain it.

    `{kafka}` and `{postgresql}` are the addresses of the servers, `{topic}` is a topic of one
    replica, `{database}` the database.
    """

    command: str
    login: str
    change: tuple[str, str]
    code: int
    lines: str


NOTHING = ("", "")
URL = "EXECUTION_EVENTS_DATABASE_URL"
MISTAKES = {
    "a wrong password": Mistake(
        "consumer",
        "writer",
        ("@", "x@"),
        2,
        'PostgreSQL at {postgresql}: password authentication failed for user "{writer}" (28P01):'
        f" correct the user or the password of {URL}",
    ),
    "a missing database": Mistake(
        "reader",
        "reader",
        ("/{database}", "/events"),
        2,
        'PostgreSQL at {postgresql}: database "events" does not exist (3D000): correct the database'
        f" of {URL}, or create it",
    ),
    "an unknown parameter in the URL": Mistake(
        "migrate",
        "owner",
        ("/{database}", "/{database}?sslmod=require"),
        2,
        "PostgreSQL at {postgresql} refused the connection: unrecognized configuration parameter"
        f' "sslmod" (42704): correct {URL}',
    ),
    "an sslmode that does not exist": Mistake(
        "migrate",
        "owner",
        ("/{database}", "/{database}?sslmode=on"),
        2,
        f"{URL}: `sslmode` parameter must be one of: disable, allow, prefer, require, verify-ca,"
        " verify-full",
    ),
    "a consumer as the reader's role": Mistake(
        "consumer",
        "reader",
        NOTHING,
        2,
        f"{URL}: the role {{reader}} has no INSERT right on event: needs execution_events_writer",
    ),
    "a prune as the writer's role": Mistake(
        "prune --older-than 90d",
        "writer",
        NOTHING,
        2,
        f"{URL}: the role {{writer}} has no DELETE right on execution: needs the owner of the"
        " database",
    ),
    "dead letters as the reader's role": Mistake(
        "dead-letters list",
        "reader",
        NOTHING,
        2,
        f"{URL}: the role {{reader}} has no SELECT right on dead_letter: needs"
        " execution_events_writer",
    ),
    "a dead letter that does not exist": Mistake(
        "dead-letters show 4711",
        "writer",
        NOTHING,
        1,
        "dead letter 4711 does not exist: `dead-letters list --state all` lists all",
    ),
    "more replicas than brokers": Mistake(
        "topic create",
        "owner",
        ("{topic}", "other"),
        2,
        "Kafka at {kafka}: the topic other cannot be created: InvalidReplicationFactorError: Unable"
        " to replicate the partition 3 time(s): The target replication factor of 3 cannot be"
        " reached because only 1 broker(s) are registered or some brokers have all their log"
        " directories cordoned. Lower --replication and --min-insync-replicas to the number of"
        " brokers.",
    ),
    "a topic that does not exist": Mistake(
        "publish",
        "owner",
        ("{topic}", "evnets"),
        1,
        "Kafka at {kafka}: the topic evnets does not exist: run `execution-events topic create`\n"
        "nothing was published",
    ),
    "an event that lacks a field": Mistake(
        "publish --execution-id e",
        "owner",
        NOTHING,
        1,
        "nothing was published; invalid events:\n"
        "  line 1: Object missing required field `metadata`\n"
        "schemas/event.schema.json describes an event",
    ),
}
EVENT = {
    "executionId": "execution-1",
    "metadata": {"name": "job.1", "namespace": "tenant"},
    "reason": "启动##ActionStart",
    "type": "Normal",
    "elemType": "KubeDAG.init",
    "elemId": "job-a",
    "actionName": "create",
}
"""The input of `publish`, except where the mistake is in it."""


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_is_explained(settings: Settings, database: Database, name: str) -> None:
    mistake = MISTAKES[name]
    url: str = getattr(database, mistake.login)
    login, _, rest = url.partition("://")[2].partition("@")
    values = {
        "kafka": settings.kafka.bootstrap_servers,
        "postgresql": rest.partition("/")[0],
        "database": rest.partition("/")[2],
        "topic": settings.kafka.topic,
        mistake.login: login.partition(":")[0],
    }
    found, wanted = (text.format(**values) for text in mistake.change)
    changed = configured(
        settings,
        database_url=url.replace(found, wanted, 1) if found else url,
        topic=wanted if found == settings.kafka.topic else settings.kafka.topic,
        management_port=0,
        reader_port=0,
    )
    event = {"executionId": "e"} if "--execution-id" in mistake.command else EVENT
    code, printed = await run(changed, *mistake.command.split(), stdin=json.dumps(event))
    assert (code, printed) == (mistake.code, mistake.lines.format(**values).splitlines())
    # A member that ends at once would stop the other consumers of the group.
    async with open_admin(settings.kafka) as admin:
        assert settings.consumer.group not in {
            name for name, _ in await admin.list_consumer_groups()
        }


async def run(settings: Settings, *command: str, stdin: str = "") -> tuple[int | None, list[str]]:
    """Return the exit code and what was printed, without logs and the name of the program."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *command,
        env=environment(settings),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        _, error = await process.communicate(stdin.encode())
    lines = [line for line in error.decode().splitlines() if not line.startswith("{")]
    return process.returncode, [line.removeprefix("execution-events: ") for line in lines]


@asynccontextmanager
async def forwarding(
    address: str, port: int = 0, change: Callable[[bytes], bytes] = lambda data: data
) -> AsyncIterator[str]:
    """Pass connections on to `address`, its answers through `change`; yield the own address."""
    host, _, upstream_port = address.partition(":")

    async def pump(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        while data := await source.read(65536):
            sink.write(change(data))
        sink.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection(host, int(upstream_port))
        await asyncio.gather(
            pump(reader, requests, lambda data: data), pump(answers, writer, change)
        )

    server = await asyncio.start_server(forward, host, port)
    async with server:
        yield f"{host}:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("command", ["publish", "topic create"])
async def test_an_advertised_address_that_cannot_be_reached_is_named_within_10_seconds(
    settings: Settings, unused_port: int, command: str
) -> None:
    host, _, port = settings.kafka.bootstrap_servers.partition(":")
    # In the metadata a port is an int32 after the host.
    real, wrong = (host.encode() + int(each).to_bytes(4, "big") for each in (port, unused_port))
    async with forwarding(
        settings.kafka.bootstrap_servers, change=lambda data: data.replace(real, wrong)
    ) as address:
        changed = configured(settings, kafka_bootstrap_servers=address)
        async with asyncio.timeout(10):
            code, printed = await run(changed, *command.split(), stdin=json.dumps(EVENT))
    advertised = f"{host}:{unused_port}"
    assert (code, printed[0]) == (
        1,
        f"Kafka at {address}: it advertises {advertised}, which cannot be reached from here (Kafka"
        f" at {advertised}: Connection refused): correct advertised.listeners of the broker, or"
        " make that name and port reachable",
    )


CREATE = ("topic", "create", "--replication", "1", "--min-insync-replicas", "1")


@pytest.mark.parametrize(
    ("command", "said_then"), [(CREATE, "created: {topic}\n"), (("migrate",), "up to date\n")]
)
async def test_a_command_waits_for_a_server_that_starts_late(
    settings: Settings,
    database: Database,
    unused_port: int,
    command: tuple[str, ...],
    said_then: str,
) -> None:
    postgresql = database.owner.partition("@")[2].partition("/")[0]
    address = f"127.0.0.1:{unused_port}"
    late = configured(
        settings,
        kafka_bootstrap_servers=address,
        topic=f"{settings.kafka.topic}-late",
        database_url=database.owner.replace(postgresql, address),
    )
    code, printed = await run(late, *command, "--wait", "1s")
    assert (code, len(printed)) == (1, 1)
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *(*command, "--wait", "60s"),
        env=environment(late),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    assert b"server_unavailable" in await process.stderr.readline()
    server = postgresql if command == ("migrate",) else settings.kafka.bootstrap_servers
    async with forwarding(server, unused_port), asyncio.timeout(DEADLINE):
        output, _ = await process.communicate()
    assert (process.returncode, output.decode()) == (0, said_then.format(topic=late.kafka.topic))
