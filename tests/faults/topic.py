"""One topic of an episode, seen and changed from outside the consumers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import KafkaError

from execution_events.errors import RetryableError
from execution_events.kafka.protocol import IncrementalAlterConfigs
from execution_events.kafka.topic import create_topic
from tests.faults.record import LogRecord, Place
from tests.support.configuration import configured

_T = TypeVar("_T")

_ATTEMPTS = 40
_COMMITTED = "read_committed"
_UNCOMMITTED = "read_uncommitted"
_PAUSE = 0.5  # seconds between attempts while the cluster settles


class Topic:
    """The topic `name`, by addresses that no fault of a network reaches."""

    def __init__(self, bootstrap_servers: str, name: str, replication: int) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.name = name
        self._replication = replication

    async def create(self, partitions: int, configs: Mapping[str, str] | None = None) -> None:
        """Create it with the settings that the guarantees need, and `configs` above them."""

        async def create() -> None:
            existing = await create_topic(
                configured(kafka_bootstrap_servers=self.bootstrap_servers, topic=self.name).kafka,
                partitions=partitions,
                replication=self._replication,
                min_insync_replicas=max(1, self._replication - 1),
                retention_ms=-1,
                configs=configs,
            )
            assert existing is None, f"{self.name} exists"

        await _patiently(create)
        await self._until_led(partitions)

    async def stamp_records(self, stamp: str) -> None:
        """Have records the time of their `stamp`: CreateTime, or LogAppendTime."""
        request = IncrementalAlterConfigs(self.name, {"message.timestamp.type": stamp})
        async with self._admin() as admin:
            answer = await admin._send_request(request)
        [(code, message, *_)] = answer.resources
        assert code == 0, message

    async def delete(self) -> None:
        """Delete it, with all its records."""
        async with self._admin() as admin:
            await admin.delete_topics([self.name])

    async def grow(self, partitions: int) -> None:
        """Add partitions up to `partitions`."""
        async with self._admin() as admin:
            await admin.create_partitions({self.name: NewPartitions(partitions)})
        await self._until_led(partitions)

    async def delete_records(self, before: Mapping[int, int]) -> None:
        """Remove each partition's records before an offset, as retention would."""
        async with self._admin() as admin:
            await admin.delete_records(
                {
                    TopicPartition(self.name, partition): RecordsToDelete(offset)
                    for partition, offset in before.items()
                }
            )

    async def leaders(self) -> dict[int, int]:
        """The node that leads each partition; -1 for none."""
        described = await _patiently(self._describe)
        return {
            partition["partition"]: partition["leader"] for partition in described["partitions"]
        }

    async def coordinator(self, group: str) -> int:
        """The node that coordinates `group`."""
        async with self._admin() as admin:
            node: int = await admin.find_coordinator(group)
            return node

    async def members(self, group: str) -> set[str]:
        """The ids of the members of `group`, none while it rebalances.

        A client that begins again gets another id.
        """

        async def describe() -> Any:
            async with self._admin() as admin:
                [answer] = await admin.describe_consumer_groups([group])
                return answer

        [(_, _, state, _, _, members, *_)] = (await _patiently(describe)).groups
        return {member[0] for member in members} if state == "Stable" else set()

    async def begins(self) -> dict[int, int]:
        """The first offset of each partition."""
        async with self._client() as (client, partitions):
            return _numbered(await client.beginning_offsets(partitions))

    async def ends(self, of: Container[int] | None = None) -> dict[int, int]:
        """The last stable offset of each partition, or of those alone that are led."""
        async with self._client() as (client, partitions):
            wanted = [p for p in partitions if of is None or p.partition in of]
            return _numbered(await client.end_offsets(wanted))

    async def high_watermarks(self) -> dict[int, int]:
        """The end of each partition; beyond the last stable offset while a transaction is open."""
        async with self._client(_UNCOMMITTED) as (client, partitions):
            return _numbered(await client.end_offsets(partitions))

    async def aborted(self) -> set[Place]:
        """The places of the records whose transactions were aborted; none may be open."""
        everything = await self.records(_UNCOMMITTED)
        return {record.place for record in everything} - {
            record.place for record in await self.records()
        }

    async def records(self, isolation: str = _COMMITTED) -> list[LogRecord]:
        """Every committed record that the log still has, each partition's in order."""
        async with self._client(isolation) as (client, partitions):
            begins = await client.beginning_offsets(partitions)
            ends = await client.end_offsets(partitions)
            client.assign(partitions)
            for partition in partitions:
                client.seek(partition, begins[partition])
            found: list[LogRecord] = []
            while any([await client.position(p) < ends[p] for p in partitions]):
                for records in (await client.getmany(timeout_ms=500)).values():
                    found += [
                        LogRecord(r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)
                        for r in records
                        if r.offset < ends[TopicPartition(self.name, r.partition)]
                    ]
            return sorted(found, key=lambda record: record.place)

    async def _describe(self) -> Any:
        async with self._admin() as admin:
            [described] = await admin.describe_topics([self.name])
            return described

    async def _until_led(self, partitions: int) -> None:
        for _ in range(_ATTEMPTS):
            leaders = await self.leaders()
            if len(leaders) == partitions and -1 not in leaders.values():
                return
            await asyncio.sleep(_PAUSE)
        raise TimeoutError(f"{self.name} has partitions without a leader")

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        try:
            await _patiently(admin.start)
            yield admin
        finally:
            await admin.close()

    @asynccontextmanager
    async def _client(
        self, isolation: str = _COMMITTED
    ) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
        client = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap_servers,
            isolation_level=isolation,
            enable_auto_commit=False,
            auto_offset_reset="none",
        )
        try:
            await _patiently(client.start)
            # Known only after it was asked for.
            await client._client._wait_on_metadata(self.name)
            numbers = client.partitions_for_topic(self.name) or set()
            yield client, [TopicPartition(self.name, number) for number in sorted(numbers)]
        finally:
            await client.stop()


def _numbered(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {partition.partition: offset for partition, offset in offsets.items()}


async def _patiently(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Ask again while Kafka refuses: a client may choose a node that is away."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return await ask()
        except (KafkaError, RetryableError):
            await asyncio.sleep(_PAUSE)
    return await ask()
