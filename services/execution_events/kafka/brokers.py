"""Requests to brokers whose failure tells its cause.

aiokafka's clients try again by themselves and log the cause; here one request is one answer or one
error, each broker is asked by itself, and one that is frozen holds up no other.
"""

import asyncio
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
from execution_events.kafka.consumer import describe
from execution_events.settings import KafkaSettings

EARLIEST = -2
LATEST = -1
_READ_COMMITTED = 1
_GROUP = 0
_PATIENCE = 1
"""Seconds until another broker is asked as well."""
_REQUEST_TIMEOUT = 4
"""Seconds to connect to a broker, and as many for its answer."""


class Address(NamedTuple):
    """The host and port of a broker."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Topology(NamedTuple):
    """A cluster's id, the broker that leads each partition of a topic, and one that answers."""

    cluster_id: str
    leaders: Mapping[int, Address]
    answered: Address


class Brokers:
    """Connections to the brokers of a cluster; an asynchronous context manager.

    Raises `RetryableError`, whose text begins with `Kafka at` and the broker's address.
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
        """The topic's leaders, as the first broker to answer knows them; creates no topic.

        A partition without a leader is not among them.
        """
        answered, response = await self._ask_any(MetadataRequest([self._topic], False))
        by_id = {node: Address(host, port) for node, host, port, *_ in response.brokers}
        self._known = list(by_id.values())
        leaders: dict[int, Address] = {}
        for code, topic, _, partitions in response.topics:
            if for_code(code) is UnknownTopicOrPartitionError:
                missing = f"the topic {topic} does not exist: run `execution-events topic create`"
                raise _failed(self._name(), missing, code)
            if code:
                raise _failed(self._name(), f"{for_code(code).__name__}: topic {topic}", code)
            for _, partition, leader, *_ in partitions:
                if leader in by_id:
                    leaders[partition] = by_id[leader]
        return Topology(response.cluster_id, leaders, answered)

    async def offsets(
        self, leader: Address, partitions: Iterable[int], which: int
    ) -> dict[int, int | RetryableError]:
        """The earliest offset, or the one after the last stable record, of each of `partitions`."""
        wanted = [(self._topic, [(partition, which) for partition in partitions])]
        response = await self.ask(leader, OffsetRequest(-1, _READ_COMMITTED, wanted))
        found: dict[int, int | RetryableError] = {}
        for _, answers in response.topics:
            for partition, code, _, offset in answers:
                found[partition] = (
                    _failed(leader, f"{for_code(code).__name__}: partition {partition}", code)
                    if code
                    else offset
                )
        return found

    async def reach_coordinator(self, group: str) -> None:
        """Return when the coordinator of `group` has answered a request."""
        _, response = await self._ask_any(FindCoordinatorRequest(group, _GROUP))
        _check(self._name(), response.error_code, f"coordinator of group {group}")
        coordinator = Address(response.host, response.port)
        response = await self.ask(coordinator, DescribeGroupsRequest([group]))
        [(code, *_)] = response.groups
        _check(coordinator, code, f"group {group}")

    async def ask(self, address: Address, request: Any) -> Any:
        """The answer of one broker."""
        try:
            connection = await self._connected(address)
            return await connection.send(request)
        except (KafkaError, OSError, TimeoutError) as error:
            if (dropped := self._connections.pop(address, None)) is not None:
                dropped.close()
            cause = "no answer" if isinstance(error, TimeoutError) else describe(error)
            raise _failed(address, cause, type(error).__name__) from error

    async def _ask_any(self, request: Any) -> tuple[Address, Any]:
        """The first broker that answers, and its answer, else the first error.

        One is asked after the other, connected ones first; one that is silent for a second holds
        up no further one.
        """
        addresses = list(dict.fromkeys([*self._connections, *self._known, *self._bootstrap]))
        asked: dict[asyncio.Task[Any], Address] = {}
        errors: list[RetryableError] = []
        try:
            while addresses or asked:
                if addresses:
                    address = addresses.pop(0)
                    asked[asyncio.create_task(self.ask(address, request))] = address
                done, _ = await asyncio.wait(
                    asked,
                    timeout=_PATIENCE if addresses else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    address = asked.pop(task)
                    try:
                        return address, task.result()
                    except RetryableError as error:
                        errors.append(error)
            raise errors[0]
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _connected(self, address: Address) -> AIOKafkaConnection:
        async with self._connecting.setdefault(address, asyncio.Lock()):
            connection = self._connections.get(address)
            if connection is None or not connection.connected():
                connection = await create_conn(*address, **self._options)
                self._connections[address] = connection
            return connection

    def _name(self) -> str:
        return ",".join(map(str, self._bootstrap))


def _check(address: object, code: int, what: str) -> None:
    if for_code(code) is not NoError:
        raise _failed(address, f"{for_code(code).__name__}: {what}", code)


def _failed(address: object, text: str, cause: int | str) -> RetryableError:
    name = cause if isinstance(cause, str) else for_code(cause).__name__
    return RetryableError(f"Kafka at {address}: {text}", name)
