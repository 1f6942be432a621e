"""An episode's topic, read and changed independently of the consumers."""

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
from tests.faults.record import LogPosition, LogRecord
from tests.support.configuration import configured

_T = TypeVar("_T")

_ATTEMPTS = 40
_COMMITTED = "read_committed"
_UNCOMMITTED = "read_uncommitted"
_PAUSE = 0.5  # seconds between attempts while the cluster settles


class Topic:
    """The topic `name`, through addresses without network faults."""

    def __init__(self, bootstrap_servers: str, name: str, replication: int) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.name = name
        self._replication = replication

    async def create(self, partitions: int, configs: Mapping[str, str] | None = None) -> None:
        """Create the topic with the settings that the guarantees need, overridden by `configs`."""

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

        await _retried(create)
        await self._until_led(partitions)

    async def stamp_records(self, stamp: str) -> None:
        """Set `message.timestamp.type` to `stamp`: CreateTime or LogAppendTime."""
        request = IncrementalAlterConfigs(self.name, {"message.timestamp.type": stamp})
        async with self._admin() as admin:
            answer = await admin._send_request(request)
        [(code, message, *_)] = answer.resources
        assert code == 0, message

    async def delete(self) -> None:
        """Delete the topic with all its records."""
        async with self._admin() as admin:
            await admin.delete_topics([self.name])

    async def grow(self, partitions: int) -> None:
        """Raise the number of partitions to `partitions`."""
        async with self._admin() as admin:
            await admin.create_partitions({self.name: NewPartitions(partitions)})
        await self._until_led(partitions)

    async def delete_records(self, before: Mapping[int, int]) -> None:
        """Delete each partition's records below an offset, as retention would."""
        async with self._admin() as admin:
            await admin.delete_records(
                {
                    TopicPartition(self.name, partition): RecordsToDelete(offset)
                    for partition, offset in before.items()
                }
            )

    async def leaders(self) -> dict[int, int]:
        """Return the leader of each partition, -1 for none."""
        described = await _retried(self._describe)
        return {
            partition["partition"]: partition["leader"] for partition in described["partitions"]
        }

    async def coordinator(self, group: str) -> int:
        """Return the node that coordinates `group`."""
        async with self._admin() as admin:
            node: int = await admin.find_coordinator(group)
            return node

    async def members(self, group: str) -> set[str]:
        """Return the member ids of `group`, none while it rebalances.

        A client that joins again gets a new id.
        """

        async def describe() -> Any:
            async with self._admin() as admin:
                [answer] = await admin.describe_consumer_groups([group])
                return answer

        [(_, _, state, _, _, members, *_)] = (await _retried(describe)).groups
        return {member[0] for member in members} if state == "Stable" else set()

    async def begins(self) -> dict[int, int]:
        """Return the first offset of each partition."""
        async with self._client() as (client, partitions):
            return _numbered(await client.beginning_offsets(partitions))

    async def ends(self, of: Container[int] | None = None) -> dict[int, int]:
        """Return the last stable offset of each partition, or of those in `of`."""
        async with self._client() as (client, partitions):
            wanted = [p for p in partitions if of is None or p.partition in of]
            return _numbered(await client.end_offsets(wanted))

    async def high_watermarks(self) -> dict[int, int]:
        """Return each partition's high watermark.

        While a transaction is open, it is past the last stable offset.
        """
        async with self._client(_UNCOMMITTED) as (client, partitions):
            return _numbered(await client.end_offsets(partitions))

    async def aborted(self) -> set[LogPosition]:
        """Return the positions of all aborted records; no transaction may be open."""
        everything = await self.records(_UNCOMMITTED)
        return {record.position for record in everything} - {
            record.position for record in await self.records()
        }

    async def records(self, isolation: str = _COMMITTED) -> list[LogRecord]:
        """Return the records that a consumer with `isolation` can read, by partition and offset."""
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
            return sorted(found, key=lambda record: record.position)

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
            await _retried(admin.start)
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
            await _retried(client.start)
            # The client has no metadata of a topic before it requests it.
            await client._client._wait_on_metadata(self.name)
            numbers = client.partitions_for_topic(self.name) or set()
            yield client, [TopicPartition(self.name, number) for number in sorted(numbers)]
        finally:
            await client.stop()


def _numbered(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {partition.partition: offset for partition, offset in offsets.items()}


async def _retried(request: Callable[[], Awaitable[_T]]) -> _T:
    """Retry `request` while Kafka fails it: a client may choose a node that is down."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return await request()
        except (KafkaError, RetryableError):
            await asyncio.sleep(_PAUSE)
    return await request()
