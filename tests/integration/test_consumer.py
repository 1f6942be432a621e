"""The consumer against real Kafka and PostgreSQL."""

import asyncio
import secrets
from collections import Counter
from random import Random

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import OffsetAndMetadata
from prometheus_client import CollectorRegistry

from execution_events import wire
from execution_events.consumer.fetcher import BatchFetcher
from execution_events.consumer.service import run_consumer
from execution_events.errors import HaltError, RetryableError
from execution_events.kafka.topic import open_admin
from execution_events.metrics import ConsumerMetrics
from execution_events.settings import Settings
from tests.support.batches import produce_batch
from tests.support.configuration import configured
from tests.support.consumers import consuming, end_offsets, stored_offsets, until, until_stored
from tests.support.databases import Database
from tests.support.occurrences import Fetch, counts, producer, publish, ready
from tests.support.processes import environment, run_cli
from tests.support.records import NonUtf8Name, occurrence
from tests.support.topics import make_topic


async def test_each_record_is_stored_once_over_restarts(settings: Settings, fetch: Fetch) -> None:
    await publish(settings, range(20))
    for _ in range(2):
        async with consuming(settings):
            await publish(settings, range(10))
            await until_stored(settings)
    assert await counts(fetch) == Counter([*range(20), *range(10), *range(10)])


async def test_offsets_in_kafka_are_never_read_back(settings: Settings, fetch: Fetch) -> None:
    await publish(settings, range(20))
    ends = await end_offsets(settings)
    client = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka.bootstrap_servers,
        group_id=settings.consumer.group,
        enable_auto_commit=False,
    )
    await client.start()
    partitions = [TopicPartition(settings.kafka.topic, partition) for partition in ends]
    client.assign(partitions)
    await client.commit({p: OffsetAndMetadata(ends[p.partition], "") for p in partitions})
    await client.stop()

    async with consuming(settings):
        await until_stored(settings)

    assert await counts(fetch) == Counter(range(20))


async def test_counts_are_exact_while_the_group_changes(settings: Settings, fetch: Fetch) -> None:
    rng = Random(1)
    published: list[int] = []

    changed = asyncio.Event()

    async def flow() -> None:
        while not changed.is_set():
            some = [rng.randrange(50) for _ in range(100)]
            await publish(settings, some)
            published.extend(some)

    small = configured(settings, batch_max_records=50)
    flowing = asyncio.create_task(flow())
    async with consuming(small):
        for _ in range(2):
            async with consuming(small):
                before = await stored_offsets(settings)

                async def moved(before: dict[int, int] = before) -> bool:
                    after = await stored_offsets(settings)
                    return bool(after) and after != before

                await until(moved, "some progress with two members")
        changed.set()
        await flowing
        await until_stored(settings)

    assert await counts(fetch) == Counter(published)


async def test_aborted_transactions_neither_count_nor_delay(
    settings: Settings, fetch: Fetch
) -> None:
    key, value = wire.encode(occurrence(execution_id="execution-1"))
    async with producer(settings, transactional_id=secrets.token_hex(4)) as client:
        async with client.transaction():
            await client.send_and_wait(settings.kafka.topic, key=key, value=value)
        await client.begin_transaction()
        await client.send_and_wait(settings.kafka.topic, key=key, value=value)
        await client.abort_transaction()

    async with consuming(settings):
        # The end is after the control records of both transactions.
        await until_stored(settings)

    assert await counts(fetch) == Counter([1])


async def test_lost_connections_neither_lose_nor_double_events(
    settings: Settings, database: Database, fetch: Fetch
) -> None:
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'execution-events consumer' AND datname = current_database()"
    )
    killer = await asyncpg.connect(database.administrator)
    async with consuming(configured(settings, batch_max_records=20)):
        for begin in range(0, 500, 100):
            await publish(settings, range(begin, begin + 100))
            await killer.execute(kill)
        await until_stored(settings)
    await killer.close()
    assert await counts(fetch) == Counter(range(500))


async def test_lost_history_halts_its_partition_alone_and_is_reported(
    settings: Settings, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configured(settings, management_port=unused_port)
    registry = CollectorRegistry()
    metrics = ConsumerMetrics(registry)
    monkeypatch.setattr("execution_events.consumer.service.ConsumerMetrics", lambda _: metrics)
    await publish(settings, range(60))
    async with consuming(settings):
        await until_stored(settings)
    ends = await end_offsets(settings)
    await publish(settings, range(60))
    async with open_admin(settings.kafka) as client:
        await client.delete_records(
            {TopicPartition(settings.kafka.topic, 0): RecordsToDelete(ends[0] + 1)}
        )

    async with consuming(settings):

        async def halted() -> bool:
            return "partition 0 is halted" in (await ready(unused_port))[1]

        await until(halted, "readiness names partition 0")
        assert (await ready(unused_port))[0] == 503

        async def others_stored() -> bool:
            now, stored = await end_offsets(settings), await stored_offsets(settings)
            return all(stored[partition] == now[partition] for partition in (1, 2))

        await until(others_stored, "the other partitions are stored")
        halts = {
            partition: registry.get_sample_value(
                "execution_events_partition_halted", {"partition": partition}
            )
            for partition in "012"
        }
        assert halts == {"0": 1, "1": 0, "2": 0}
    assert (await stored_offsets(settings))[0] == ends[0]


async def test_a_log_that_ends_before_the_stored_offset_halts(
    settings: Settings, fetch: Fetch, unused_port: int
) -> None:
    """The topic was deleted and created again."""
    settings = configured(settings, management_port=unused_port)
    await fetch(
        "INSERT INTO partition_progress (topic, partition, next_offset, changed_at)"
        f" VALUES ('{settings.kafka.topic}', 1, 5, now())"
    )
    async with consuming(settings):

        async def halted() -> bool:
            return "partition 1 is halted" in (await ready(unused_port))[1]

        await until(halted, "readiness names partition 1")


async def test_another_log_of_the_same_length_halts(
    settings: Settings, fetch: Fetch, unused_port: int
) -> None:
    """The topic was created again and filled past the stored offsets."""
    settings = configured(settings, management_port=unused_port)
    await publish(settings, range(60))
    async with consuming(settings):
        await until_stored(settings)
    await fetch("UPDATE partition_progress SET last_timestamp = last_timestamp - 1")
    before = await stored_offsets(settings)
    await publish(settings, range(60))

    async with consuming(settings):

        async def halted() -> bool:
            return (await ready(unused_port))[1].count("is not the one that was stored") == 3

        await until(halted, "readiness names all partitions")
    assert await stored_offsets(settings) == before


async def test_another_cluster_halts(settings: Settings, fetch: Fetch, unused_port: int) -> None:
    settings = configured(settings, management_port=unused_port)
    async with consuming(settings):
        await until_stored(settings)
    await fetch("UPDATE partition_progress SET cluster_id = 'elsewhere'")

    async with consuming(settings):

        async def halted() -> bool:
            return (await ready(unused_port))[1].count("not elsewhere") == 3

        await until(halted, "readiness names all partitions")


async def test_retention_of_stored_records_does_not_halt(settings: Settings, fetch: Fetch) -> None:
    await publish(settings, range(60))
    async with consuming(settings):
        await until_stored(settings)
    ends = await end_offsets(settings)
    async with open_admin(settings.kafka) as client:
        await client.delete_records(
            {
                TopicPartition(settings.kafka.topic, p): RecordsToDelete(end)
                for p, end in ends.items()
            }
        )
    await publish(settings, range(60))
    async with consuming(settings):
        await until_stored(settings)
    assert await counts(fetch) == Counter([*range(60), *range(60)])


async def test_a_record_refused_by_the_database_becomes_a_dead_letter(
    settings: Settings, fetch: Fetch
) -> None:
    bombs = {7, 8, 50, 199}
    await fetch(
        "ALTER TABLE event ADD CONSTRAINT no_bombs"
        " CHECK (substr(execution_id, 11)::integer NOT IN (7, 8, 50, 199))"
    )
    await publish(settings, range(200))
    async with consuming(settings):
        await until_stored(settings)
    assert await counts(fetch) == Counter(set(range(200)) - bombs)
    letters = await fetch("SELECT key, reason, detail FROM dead_letter")
    assert {letter["key"].decode() for letter in letters} == {f"execution-{n}" for n in bombs}
    assert {letter["reason"] for letter in letters} == {wire.REFUSED_BY_DATABASE}
    assert {letter["detail"] for letter in letters} == {"CheckViolationError no_bombs (23514)"}


async def test_an_unreadable_record_halts_its_partition_alone(
    settings: Settings, fetch: Fetch, unused_port: int
) -> None:
    settings = configured(settings, management_port=unused_port)
    await publish(settings, range(60))
    bad = (await end_offsets(settings))[1]
    await produce_batch(settings, 1, [b"x"], ((NonUtf8Name("name"), b""),))
    await publish(settings, range(60))

    async with consuming(settings):

        async def halted() -> bool:
            reason = f"partition 1 is halted: the batch at offset {bad} (to offset {bad}) "
            return reason in (await ready(unused_port))[1]

        await until(halted, "readiness names partition and offset")

        async def others_stored() -> bool:
            now, stored = await end_offsets(settings), await stored_offsets(settings)
            return all(stored[partition] == now[partition] for partition in (0, 2))

        await until(others_stored, "the other partitions are stored")
        assert (await stored_offsets(settings))[1] == bad
        # The remedy: remove it from the log, and accept the log.
        async with open_admin(settings.kafka) as client:
            await client.delete_records(
                {TopicPartition(settings.kafka.topic, 1): RecordsToDelete(bad + 1)}
            )
        env = environment(settings)
        assert "accepted" in await run_cli("topic", "accept", "--yes", env=env)
        await until_stored(settings)
    assert await counts(fetch) == Counter([*range(60), *range(60)])


async def test_a_compacted_topic_is_refused(settings: Settings) -> None:
    compacted = configured(settings, topic=f"{settings.kafka.topic}-compacted")
    await make_topic(compacted, 1, {"cleanup.policy": "compact"})
    with pytest.raises(HaltError, match=r"compacted.*cleanup\.policy"):
        await run_consumer(compacted, asyncio.Event())


async def test_an_old_schema_is_refused_with_the_command_to_run(
    settings: Settings, fetch: Fetch
) -> None:
    await fetch("DELETE FROM schema_version")
    with pytest.raises(HaltError, match="execution-events migrate"):
        await run_consumer(settings, asyncio.Event())


async def test_a_consumer_waits_for_its_topic(settings: Settings, unused_port: int) -> None:
    missing = configured(
        settings, topic=f"{settings.kafka.topic}-later", management_port=unused_port
    )
    async with consuming(missing):

        async def reported() -> bool:
            return "execution-events topic create" in (await ready(unused_port))[1]

        await until(reported, "readiness names the command to run")
        await make_topic(missing, 1)

        async def joined() -> bool:
            return (await ready(unused_port))[0] == 200

        await until(joined, "ready once the topic exists")


async def test_an_idle_consumer_stops_within_seconds(settings: Settings, unused_port: int) -> None:
    settings = configured(settings, management_port=unused_port)
    loop = asyncio.get_running_loop()
    async with consuming(settings):

        async def joined() -> bool:
            return (await ready(unused_port))[0] == 200

        await until(joined, "ready")
        stopping = loop.time()
    assert loop.time() - stopping < 5


async def test_an_error_while_leaving_the_group_is_not_raised(
    settings: Settings, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop's transport raises it if the connection was reset at that moment."""
    stop = AIOKafkaConsumer.stop

    async def fails(client: AIOKafkaConsumer) -> None:
        await stop(client)
        if client.subscription():
            raise RuntimeError("the handler is closed")

    async def is_stored() -> bool:
        return await counts(fetch) == Counter([1])

    await publish(settings, [1])
    monkeypatch.setattr(AIOKafkaConsumer, "stop", fails)
    # Errors of the consumer are raised here.
    async with consuming(settings):
        await until(is_stored, "the record is stored")


async def test_a_client_whose_fetch_task_has_ended_is_replaced(
    settings: Settings, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error ends aiokafka's fetch task, and the client keeps running."""
    send = AIOKafkaClient.send
    failed: list[int] = []

    async def fails_once(
        client: AIOKafkaClient, node: int, request: object, **options: object
    ) -> object:
        if isinstance(request, FetchRequest) and not failed:
            failed.append(node)
            raise RuntimeError("the handler is closed")
        return await send(client, node, request, **options)

    monkeypatch.setattr(AIOKafkaClient, "send", fails_once)
    await publish(settings, range(20))
    async with consuming(settings):
        await until_stored(settings)
    assert failed
    assert await counts(fetch) == Counter(range(20))


async def test_replacing_failing_clients_backs_off(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def counted(attempt: int) -> float:
        attempts.append(attempt)
        return 0

    async def fails(*_: object, **__: object) -> None:
        raise RetryableError("no client can fetch", "RuntimeError")

    async def failed_often() -> bool:
        return len(attempts) >= 3

    monkeypatch.setattr("execution_events.consumer.service.backoff", counted)
    monkeypatch.setattr(BatchFetcher, "poll", fails)
    async with consuming(settings):
        await until(failed_often, "three clients have failed")
    assert attempts[:3] == [0, 1, 2]


async def test_metrics_count_outcomes_and_lag(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = CollectorRegistry()
    metrics = ConsumerMetrics(registry)
    monkeypatch.setattr("execution_events.consumer.service.ConsumerMetrics", lambda _: metrics)

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"execution_events_{name}", labels)

    await publish(settings, range(5))
    async with producer(settings) as client:
        await client.send_and_wait(settings.kafka.topic, key=b"execution-1", value=b"not json")
        _, value = wire.encode(occurrence())
        for _ in range(2):
            headers = [("ce_source", b"worker"), ("ce_sequence", b"7")]
            await client.send_and_wait(
                settings.kafka.topic, key=None, value=value, headers=headers, partition=0
            )

    async with consuming(settings):
        await until_stored(settings)

        async def counted() -> bool:
            return (
                registry.get_sample_value("execution_events_lag_records", {"partition": "0"}) == 0
            )

        await until(counted, "no lag")

    assert sample("records_total", outcome="stored") == 6
    assert sample("records_total", outcome="duplicate") == 1
    assert sample("records_total", outcome="dead_letter") == 1
    assert sample("records_without_key_total") == 1
