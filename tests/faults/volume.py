"""A load test: many records, some refused by the database, stored and retried with exact counts.

python -m tests.faults.volume [--records N] [--poison FRACTION] [--seed S]
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import asyncpg
from confluent_kafka import Producer

from execution_events.embedded import (
    EmbeddedPostgres,
    running,
)
from execution_events.settings import Settings
from tests.support import databases
from tests.support.configuration import configured
from tests.support.consumers import end_offsets, stored_offsets
from tests.support.processes import environment, run_cli, service
from tests.support.servers import broker_in, data_directory
from tests.support.topics import make_topic

PARTITIONS = 6
EVENTS_OF_AN_EXECUTION = 140
LIMIT = 3600
"""Seconds until all records must be stored."""

Counts = Counter[tuple[str, str]]
"""Occurrences by execution and name."""


def main() -> int:
    """Run the test and print its figures; return 1 if a count is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.volume", description=__doc__)
    parser.add_argument(
        "--records",
        type=int,
        default=1_000_000,
        metavar="N",
        help="number of records (default: %(default)s)",
    )
    parser.add_argument(
        "--poison",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="fraction that the database refuses (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="S", help="random seed (default: %(default)s)"
    )
    arguments = parser.parse_args()
    return asyncio.run(_run(arguments.records, arguments.poison, arguments.seed))


async def _run(records: int, share: float, seed: int) -> int:
    async with data_directory() as directory:
        kafka, postgres = broker_in(directory), EmbeddedPostgres(directory)
        async with (
            running(kafka, postgres),
            databases.template(postgres.dsn()) as template,
            databases.cloned(postgres.dsn(), template) as database,
        ):
            settings = configured(
                kafka_bootstrap_servers=kafka.bootstrap_servers,
                database_url=database.writer,
                management_port=0,
            )
            await make_topic(settings, PARTITIONS)
            logs = directory.path.parent
            return await _measure(settings, database.owner, records, share, seed, logs)


async def _measure(
    settings: Settings, owner_url: str, records: int, share: float, seed: int, logs: Path
) -> int:
    good, poison = await asyncio.to_thread(_publish, settings, records, share, seed)
    print(f"published: {records} records, {poison.total()} of them poison", flush=True)
    owner = await asyncpg.connect(owner_url, server_settings={"search_path": "execution_events"})
    await owner.execute(
        "ALTER TABLE event ADD CONSTRAINT no_poison CHECK (name NOT LIKE 'poison%')"
    )
    started = time.monotonic()
    async with service("consumer", settings, logs / "consumer.log") as consumer:
        await _drained(settings, records)
        peak = _peak_rss(consumer.process.pid)
    seconds = time.monotonic() - started
    print(f"drained: {seconds:.0f} s, {records / seconds:.0f} records/s, peak RSS {peak} MiB")
    wrong = _difference(await _stored(owner), good)
    listed = await run_cli("dead-letters", "list", "--json", env=environment(settings))
    letters = Counter(json.loads(line)["reason"] for line in listed.splitlines())
    print(f"before the retry: {wrong} wrong counts; dead letters {dict(letters)}", flush=True)

    await owner.execute("ALTER TABLE event DROP CONSTRAINT no_poison")
    started = time.monotonic()
    retrying = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "execution_events.cli", "dead-letters", "retry", "--all"),
        env=environment(settings),
    )
    code = await retrying.wait()
    print(f"retried: exit code {code}, {time.monotonic() - started:.0f} s")
    wrong_after = _difference(await _stored(owner), good + poison)
    print(f"after the retry: {wrong_after} wrong counts")
    await owner.close()
    exact = letters == {"refused_by_database": poison.total()} and code == 0
    return 0 if exact and not wrong and not wrong_after else 1


def _publish(settings: Settings, records: int, share: float, seed: int) -> tuple[Counts, Counts]:
    """Publish records of one occurrence each; return the counts of good and of poison ones."""
    rng = random.Random(seed)
    good, poison = Counts(), Counts()
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "partitioner": "murmur2_random",
            "compression.type": "zstd",
            "queue.buffering.max.messages": 200_000,
        }
    )
    executions = max(records // EVENTS_OF_AN_EXECUTION, 1)
    for _ in range(records):
        execution = f"execution-{rng.randrange(executions)}"
        bad = rng.random() < share
        # Under names of their own: the database refuses poison by name.
        name = f"{'poison' if bad else 'job'}.{rng.randrange(EVENTS_OF_AN_EXECUTION):x}"
        (poison if bad else good)[execution, name] += 1
        content = {
            "executionId": execution,
            "metadata": {"name": name, "namespace": "c51567523b744d098a8a81ede51894ac"},
            "reason": "启动##ActionStart",
            "message": "元素(job-c-init)开始执行(create)流程. ## Element(job-c-init) start.",
            "lastTimestamp": "2026-01-01T00:00:00Z",
            "type": "Normal",
            "elemType": "KubeDAG.init",
            "elemId": "job-c-init",
            "actionName": "create",
        }
        while True:
            try:
                producer.produce(
                    settings.kafka.topic, json.dumps(content, ensure_ascii=False), execution
                )
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()
    return good, poison


async def _drained(settings: Settings, records: int) -> None:
    ends = await end_offsets(settings)
    shown = time.monotonic()
    async with asyncio.timeout(LIMIT):
        while (stored := await stored_offsets(settings)) != ends:
            if time.monotonic() - shown > 15:
                shown = time.monotonic()
                print(f"  stored {sum(stored.values())} of {records}", flush=True)
            await asyncio.sleep(0.5)


async def _stored(owner: asyncpg.Connection) -> Counts:
    rows = await owner.fetch("SELECT execution_id, name, count FROM event")
    return Counts({(row[0], row[1]): row[2] for row in rows})


def _difference(stored: Counts, expected: Counts) -> int:
    """Return the number of differing, missing and unexpected counts."""
    return sum(stored[key] != expected[key] for key in stored.keys() | expected.keys())


def _peak_rss(pid: int) -> int:
    """Return the peak of the process's resident memory in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    sys.exit(main())
