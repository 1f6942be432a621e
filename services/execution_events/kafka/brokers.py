"""Requests to individual brokers, for health checks and offsets.

aiokafka's clients retry and only log the cause. Here a request gives one response or one error, and
a frozen broker does not delay requests to the others.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.errors import KafkaError, NoError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest

from execution_events.errors import RetryableError
from execution_events.kafka.connection import client_options
from execution_events.kafka.errors import kafka_error, missing_topic, translated
from execution_events.settings import KafkaSettings

EARLIEST = -2
LATEST = -1
_READ_COMMITTED = 1
_GROUP = 0
_HEDGE_DELAY = 1
"""Seconds without a response until the request goes to another broker as well."""
_REQUEST_TIMEOUT = 4
"""Seconds to connect to a broker, and as many for its response."""


class Address(NamedTuple):
    """The host and port of a broker."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Topology(NamedTuple):
    """A cluster's id, the leaders of a topic's partitions, and the broker that responded."""

    cluster_id: str
    leaders: Mapping[int, Address]
    responder: Address

    def by_leader(self, partitions: Iterable[int]) -> tuple[dict[Address, list[int]], list[int]]:
        """Return the partitions of each leader, and those that have no leader."""
        led: dict[Address, list[int]] = defaultdict(list)
        leaderless: list[int] = []
        for partition in partitions:
            leader = self.leaders.get(partition)
            (leaderless if leader is None else led[leader]).append(partition)
        return led, leaderless


class Brokers:
    """Connections to the brokers of a cluster; an asynchronous context manager.

    Raises `RetryableError`; its text begins with `Kafka at` and the broker's address.
    """

    def __init__(self, settings: KafkaSettings, client_id: str) -> None:
        options = client_options(settings)
        self._bootstrap = [
            Address(host, port) for host, port, _ in collect_hosts(options.pop("bootstrap_servers"))
        ]
        self._options = {
            **options,
            "client_id": client_id,
            "request_timeout_ms": _REQUEST_TIMEOUT * 1000,
        }
        self._topic = settings.topic
        self._known: list[Address] = []
        self._connections: dict[Address, AIOKafkaConnection] = {}
        self._connecting: dict[Address, asyncio.Lock] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    async def topology(self) -> Topology:
        """Return the topology known to the first broker that responds; create no topic.

        `leaders` lacks the partitions that have no leader.
        """
        responder, response = await self._request_any(MetadataRequest([self._topic], False))
        by_id = {node: Address(host, port) for node, host, port, *_ in response.brokers}
        self._known = list(by_id.values())
        leaders: dict[int, Address] = {}
        for code, topic, _, partitions in response.topics:
            if for_code(code) is UnknownTopicOrPartitionError:
                raise _failed(self._name(), missing_topic(topic), code)
            if code:
                raise _failed(self._name(), f"{for_code(code).__name__}: topic {topic}", code)
            for _, partition, leader, *_ in partitions:
                if leader in by_id:
                    leaders[partition] = by_id[leader]
        return Topology(response.cluster_id, leaders, responder)

    async def offsets(
        self, leader: Address, partitions: Iterable[int], which: int
    ) -> dict[int, int | RetryableError]:
        """Return the offset of each of `partitions`, or the error in its place.

        `which` is `EARLIEST`, or `LATEST` for the offset after the last stable record.
        """
        wanted = [(self._topic, [(partition, which) for partition in partitions])]
        response = await self.request(leader, OffsetRequest(-1, _READ_COMMITTED, wanted))
        offsets: dict[int, int | RetryableError] = {}
        for _, entries in response.topics:
            for partition, code, _, offset in entries:
                offsets[partition] = (
                    _failed(leader, f"{for_code(code).__name__}: partition {partition}", code)
                    if code
                    else offset
                )
        return offsets

    async def check_coordinator(self, group: str) -> None:
        """Return once the coordinator of `group` has responded; raise if it reports an error."""
        _, response = await self._request_any(FindCoordinatorRequest(group, _GROUP))
        _check(self._name(), response.error_code, f"coordinator of group {group}")
        coordinator = Address(response.host, response.port)
        response = await self.request(coordinator, DescribeGroupsRequest([group]))
        [(code, *_)] = response.groups
        _check(coordinator, code, f"group {group}")

    async def request(self, address: Address, request: Any) -> Any:
        """Send `request` to one broker and return its response."""
        try:
            connection = await self._connected(address)
            return await connection.send(request)
        except (KafkaError, OSError, TimeoutError) as error:
            if (dropped := self._connections.pop(address, None)) is not None:
                dropped.close()
            raise translated(address, error) from error

    async def _request_any(self, request: Any) -> tuple[Address, Any]:
        """Return the first broker that responds and its response; else raise the first error.

        Connected brokers come first. A broker that is silent for a second does not delay the
        request to the next.
        """
        addresses = list(dict.fromkeys([*self._connections, *self._known, *self._bootstrap]))
        pending: dict[asyncio.Task[Any], Address] = {}
        errors: list[RetryableError] = []
        try:
            while addresses or pending:
                if addresses:
                    address = addresses.pop(0)
                    pending[asyncio.create_task(self.request(address, request))] = address
                done, _ = await asyncio.wait(
                    pending,
                    timeout=_HEDGE_DELAY if addresses else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    address = pending.pop(task)
                    try:
                        return address, task.result()
                    except RetryableError as error:
                        errors.append(error)
            raise errors[0]
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _connected(self, address: Address) -> AIOKafkaConnection:
        async with self._connecting.setdefault(address, asyncio.Lock()):
            connection = self._connections.get(address)
            if connection is None or not connection.connected():
                connection = await create_conn(*address, **self._options)
                self._connections[address] = connection
            return connection

    def _name(self) -> str:
        return ",".join(map(str, self._bootstrap))


def _check(address: object, code: int, subject: str) -> None:
    if for_code(code) is not NoError:
        raise _failed(address, f"{for_code(code).__name__}: {subject}", code)


def _failed(address: object, text: str, code: int) -> RetryableError:
    return kafka_error(address, text, for_code(code).__name__)
