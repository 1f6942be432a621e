"""Readiness by cause: the time until it fails, the reason, and the time until it recovers.

Each service is polled throughout, and every response comes within two seconds.
"""

import asyncio
import json
import re
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import pytest

from execution_events.consumer.service import run_consumer
from execution_events.embedded import EmbeddedKafka
from execution_events.kafka.topic import open_admin
from execution_events.reader.service import run_reader
from execution_events.settings import Settings
from tests.faults.proxy import Proxy
from tests.support import databases, published
from tests.support.configuration import configured
from tests.support.consumers import consuming
from tests.support.databases import Database, administrator
from tests.support.guarded_broker import GuardedBroker, guarded_broker
from tests.support.occurrences import publish, ready
from tests.support.servers import Servers
from tests.support.topics import make_topic

NOT_READY = 15
"""Seconds until a cause must be reported."""
READY_AGAIN = 10
"""Seconds until a service must be ready after the cause is removed."""
RESPONSE_TIMEOUT = 2
"""Seconds for one response, even while a peer is frozen."""
PARTITIONS = 3


@dataclass
class Peers:
    """The servers that a service under test depends on, and their faults."""

    broker: GuardedBroker
    postgres: Proxy
    database: Database
    settings: Settings

    @property
    def kafka(self) -> EmbeddedKafka:
        return self.broker.kafka

    async def set_read_only(self, value: str) -> None:
        name = urlsplit(self.database.administrator).path[1:]
        async with administrator(self.database.administrator) as connection:
            await connection.execute("SET default_transaction_read_only = off")
            await connection.execute(
                f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}'
            )
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )


@pytest.fixture(scope="module")
async def broker() -> AsyncIterator[GuardedBroker]:
    async with guarded_broker() as started:
        yield started


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@asynccontextmanager
async def prepared(
    broker: GuardedBroker, servers: Servers, template_database: str
) -> AsyncIterator[Peers]:
    """Create the peers of one service: a database of its own behind a proxy, and a topic."""
    async with databases.cloned(servers.administrator_url, template_database) as database:
        url = urlsplit(database.writer)
        async with Proxy(url.port or 0) as proxy:
            netloc = f"{url.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}"
            name = f"test-{secrets.token_hex(4)}"
            settings = broker.unlimited(
                configured(
                    topic=name,
                    group=name,
                    database_url=urlunsplit(url._replace(netloc=netloc)),
                    management_port=free_port(),
                    reader_port=0,
                    stall_timeout=5,
                )
            )
            await make_topic(settings, PARTITIONS)
            yield Peers(broker, proxy, database, settings)


@pytest.fixture
async def peers(
    broker: GuardedBroker, servers: Servers, template_database: str
) -> AsyncIterator[Peers]:
    async with prepared(broker, servers, template_database) as prepared_peers:
        yield prepared_peers


Fault = Callable[[Peers], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def kafka_frozen(peers: Peers) -> AsyncIterator[None]:
    with published.silent(peers.kafka):
        yield


@asynccontextmanager
async def kafka_gone(peers: Peers) -> AsyncIterator[None]:
    peers.kafka.process.kill(signal.SIGKILL)
    await peers.kafka.process.wait()
    try:
        yield
    finally:
        await peers.kafka.start()


@asynccontextmanager
async def postgres_frozen(peers: Peers) -> AsyncIterator[None]:
    async with peers.postgres.black_hole():
        yield


@asynccontextmanager
async def postgres_refuses(peers: Peers) -> AsyncIterator[None]:
    async with peers.postgres.refusing():
        yield


@asynccontextmanager
async def both_refuse(peers: Peers) -> AsyncIterator[None]:
    async with kafka_gone(peers), postgres_refuses(peers):
        yield


@asynccontextmanager
async def postgres_read_only(peers: Peers) -> AsyncIterator[None]:
    await peers.set_read_only("on")
    try:
        yield
    finally:
        await peers.set_read_only("off")


@asynccontextmanager
async def topic_deleted(peers: Peers) -> AsyncIterator[None]:
    """Delete the topic: aiokafka's consumer is then assigned no partition, and logs nothing."""
    async with open_admin(peers.settings.kafka) as admin:
        await admin.delete_topics([peers.settings.kafka.topic])
    try:
        yield
    finally:
        await make_topic(peers.settings, PARTITIONS)


@asynccontextmanager
async def partition_stalls(peers: Peers) -> AsyncIterator[None]:
    """Lock a table: PostgreSQL responds, but a batch cannot be stored."""
    async with (
        administrator(peers.database.administrator) as connection,
        connection.transaction(),
    ):
        await connection.execute("LOCK TABLE execution_events.event IN EXCLUSIVE MODE")
        await publish(peers.settings, range(30))
        yield


async def until_ready(port: int, wanted: int, limit: float, pattern: str = "") -> float:
    """Return the seconds until /readyz responds `wanted` with a reason that matches `pattern`."""
    begun = time.monotonic()
    status, body = 0, ""
    while True:
        sent = time.monotonic()
        status, body = await ready(port)
        now = time.monotonic()
        assert now - sent < RESPONSE_TIMEOUT
        if status == wanted and re.search(pattern, " | ".join(json.loads(body)["reasons"])):
            return now - begun
        assert now - begun < limit, f"after {limit} s /readyz gives {status} {body}"
        await asyncio.sleep(0.1)


async def check(service: str, peers: Peers, fault: Fault, pattern: str) -> None:
    """Inject a fault: /readyz reports it in time, keeps doing so, and recovers in time."""
    port = peers.settings.management.port
    await until_ready(port, 200, 30)
    async with fault(peers):
        failed = await until_ready(port, 503, NOT_READY, pattern)
        for _ in range(5):
            assert (await ready(port))[0] == 503
            await asyncio.sleep(0.1)
    again = await until_ready(port, 200, READY_AGAIN)
    times = f"not ready after {failed:.1f} s, ready again after {again:.1f} s"
    print(f"{service}, {fault.__name__}: {times}")


KAFKA = r"Kafka at 127\.0\.0\.1:\d+: "
POSTGRES = r"PostgreSQL at 127\.0\.0\.1:\d+"


@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        (kafka_frozen, KAFKA + "no answer"),
        (both_refuse, KAFKA + rf".*Connection refused.*\| {POSTGRES} cannot be reached"),
        (topic_deleted, KAFKA + "the topic .* does not exist: run"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_the_consumer_names_the_cause_of_a_kafka_fault(
    peers: Peers, fault: Fault, pattern: str
) -> None:
    async with consuming(peers.settings):
        await check("consumer", peers, fault, pattern)


async def test_services_name_the_cause_of_a_postgresql_fault(
    broker: GuardedBroker, servers: Servers, template_database: str
) -> None:
    silent = POSTGRES + ": no answer"
    refused = POSTGRES + " cannot be reached: .*Connection refused"
    stalled = r"partition \d has lag and has stored nothing for \d+ s: "

    async def check_one(service: str, fault: Fault, pattern: str) -> None:
        run = {"consumer": consuming, "reader": reading}[service]
        async with prepared(broker, servers, template_database) as peers, run(peers.settings):
            await check(service, peers, fault, pattern)

    # Each spends most of its time waiting.
    await asyncio.gather(
        check_one("consumer", postgres_frozen, silent),
        check_one("consumer", postgres_refuses, refused),
        check_one("consumer", postgres_read_only, POSTGRES + " is read-only"),
        check_one("consumer", partition_stalls, stalled + POSTGRES + ": .*55P03"),
        check_one("reader", postgres_frozen, silent),
        check_one("reader", postgres_refuses, refused),
    )


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[None]:
    """Run a reader; at the end it is stopped and its errors are raised."""
    stop = asyncio.Event()
    reader = asyncio.create_task(run_reader(settings, stop))
    try:
        yield
    finally:
        stop.set()
        await reader


async def test_the_reader_is_ready_while_the_database_is_read_only(peers: Peers) -> None:
    """A reader may run on a replica."""
    async with postgres_read_only(peers), reading(peers.settings):
        await until_ready(peers.settings.management.port, 200, 30)


async def test_a_missing_right_is_reported_with_kafkas_error(peers: Peers) -> None:
    settings = peers.broker.limited(peers.settings)
    port = settings.management.port
    topic, group = settings.kafka.topic, settings.consumer.group
    await peers.broker.grant(topic, "Describe", "DescribeConfigs")
    await peers.broker.grant(group, "Read", resource="group")
    async with consuming(settings):
        pattern = rf"{KAFKA}TopicAuthorizationFailedError"
        await until_ready(port, 503, NOT_READY, pattern)
        await peers.broker.grant(topic, "Read")
        again = await until_ready(port, 200, READY_AGAIN)
        print(f"consumer, READ granted: ready after {again:.1f} s")
        await peers.broker.revoke(topic, "Read")
        failed = await until_ready(port, 503, NOT_READY, pattern)
        print(f"consumer, READ revoked: not ready after {failed:.1f} s")
        await peers.broker.grant(topic, "Read")
        again = await until_ready(port, 200, READY_AGAIN)
        print(f"consumer, READ granted again: ready after {again:.1f} s")


async def test_a_missing_right_on_the_group_is_reported(peers: Peers) -> None:
    settings = peers.broker.limited(peers.settings)
    await peers.broker.grant(settings.kafka.topic, "Read", "Describe", "DescribeConfigs")
    async with consuming(settings):
        await until_ready(
            settings.management.port, 503, NOT_READY, rf"{KAFKA}GroupAuthorizationFailedError"
        )
        await peers.broker.grant(settings.consumer.group, "Read", resource="group")
        await until_ready(settings.management.port, 200, READY_AGAIN)


async def test_a_consumer_started_with_a_frozen_broker_reports_it_and_stops(
    peers: Peers,
) -> None:
    stop = asyncio.Event()
    async with kafka_frozen(peers):
        consumer = asyncio.create_task(run_consumer(peers.settings, stop))
        try:
            await until_ready(peers.settings.management.port, 503, NOT_READY, KAFKA + "no answer")
        finally:
            stop.set()
            await consumer


@pytest.mark.parametrize("moment", [0.05, pytest.param(0.25, marks=pytest.mark.more)])
async def test_a_consumer_stops_cleanly_while_kafka_is_down(peers: Peers, moment: float) -> None:
    """At several moments of the client's reconnection attempts."""
    stop = asyncio.Event()
    consumer = asyncio.create_task(run_consumer(peers.settings, stop))
    await until_ready(peers.settings.management.port, 200, 30)
    async with kafka_gone(peers):
        # The client pauses for 0.1 s after each attempt.
        await asyncio.wait({consumer}, timeout=moment)
        stop.set()
        begun = time.monotonic()
        # Errors of the consumer are raised here, a CancelledError too.
        await consumer
        assert time.monotonic() - begun < peers.settings.stop_timeout


async def test_a_silent_bootstrap_server_does_not_delay_the_start(peers: Peers) -> None:
    async with Proxy(peers.kafka.port) as silent, silent.black_hole():
        servers = f"127.0.0.1:{silent.port},{peers.settings.kafka.bootstrap_servers}"
        async with consuming(configured(peers.settings, kafka_bootstrap_servers=servers)):
            await until_ready(peers.settings.management.port, 200, READY_AGAIN)
