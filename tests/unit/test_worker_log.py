"""The log of a worker without Kafka, in a logging configuration of its own."""

import asyncio
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from execution_events import Publisher
from execution_events.errors import SpoolFullError
from execution_events.kafka.client_logs import collapsed
from execution_events.logs import Repetitions
from execution_events.publisher.delivery import connection, spooled, task
from execution_events.publisher.delivery.connection import KafkaConnection
from execution_events.publisher.delivery.spooled import SpooledDelivery
from execution_events.publisher.delivery.task import RestartingTask
from execution_events.settings import KafkaSettings
from tests.support.logs import events, logged
from tests.support.processes import environment
from tests.support.publisher_contract import changed

DEADLINE = 20

WORKER = """
import asyncio, atexit, logging, os, sys
from execution_events import Publisher, sync

IDENTITY = {"execution_id": "e", "namespace": "n", "object_name": "o"}
IDENTITY |= {"elem_type": "t", "elem_id": "job-a"}


async def work(publisher):
    async with publisher.element(**IDENTITY).action("create"):
        pass


async def main():
    await work(await Publisher.from_settings().__aenter__())


def threaded():
    publisher = sync.Publisher.from_settings().__enter__()
    with publisher.element(**IDENTITY).action("create"):
        pass


def forking():
    threaded()
    if os.fork() == 0:
        sys.exit()
    os.wait()


def registered():
    publisher = sync.Publisher.from_settings().__enter__()
    atexit.register(publisher.close)
    atexit.register(publisher.element(**IDENTITY).event, "a##A", action_name="create")
    with publisher.element(**IDENTITY).action("create"):
        pass


async def closing():
    async with Publisher.from_settings() as publisher:
        await work(publisher)


logging.basicConfig()
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
"""
"""Programs that end with events in their spool, while Kafka is unavailable."""


async def run(program: str, spool: Path, unused_port: int) -> list[str]:
    """Run a function of `WORKER` to its end, and return the lines of its log."""
    variables = {
        "EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{unused_port}",
        "EXECUTION_EVENTS_SPOOL_DIR": str(spool),
        "EXECUTION_EVENTS_CLOSE_TIMEOUT": "1",
    }
    # From 3.13 on Python warns of the spool's file too, if the publisher was not closed.
    warnings = ("-W", "error", "-W", "ignore:unclosed database:ResourceWarning")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *warnings, "-c", WORKER + program),
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    async with asyncio.timeout(DEADLINE):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode().splitlines()


@pytest.mark.parametrize("program", ["asyncio.run(main())", "threaded()", "forking()"])
async def test_an_exit_without_a_close_says_what_is_left_and_where(
    program: str, tmp_path: Path, unused_port: int
) -> None:
    lines = await run(program, tmp_path, unused_port)
    [spool] = tmp_path.glob("spool-*.db")
    assert [line for line in lines if "kafka_unavailable" not in line] == [
        "WARNING:execution_events.publisher.publisher:publisher_not_closed  "
        f"events=2 path={spool} next_step=they are on the disk: the next publisher on the "
        "directory, or `execution-events spool drain`, sends them"
    ]


@pytest.mark.parametrize(
    ("program", "events"), [("asyncio.run(closing())", 2), ("registered()", 3)]
)
async def test_a_close_says_what_is_left_and_where(
    program: str, events: int, tmp_path: Path, unused_port: int
) -> None:
    lines = await run(program, tmp_path, unused_port)
    [spool] = tmp_path.glob("spool-*.db")
    assert [line.partition(" next_step=")[0] for line in lines if "kafka_un" not in line] == [
        "WARNING:execution_events.publisher.publisher:events_undelivered  "
        f"events={events} path={spool}"
    ]


async def test_an_outage_is_logged_once_a_minute_with_the_number_of_attempts(
    unused_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, attempts, enough = 0.0, 0, asyncio.Event()

    def unavailable(_: str) -> None:
        nonlocal now, attempts
        attempts += 1
        now = 60.0 * (attempts // 10)
        if attempts == 30:
            enough.set()

    monkeypatch.setattr(connection, "backoff", lambda _: 0)
    monkeypatch.setattr(connection, "Repetitions", lambda: Repetitions(lambda: now))
    address = f"127.0.0.1:{unused_port}"
    kafka = KafkaConnection(KafkaSettings(bootstrap_servers=address), unavailable)
    connecting = asyncio.create_task(kafka.producer())
    async with asyncio.timeout(DEADLINE):
        await enough.wait()
    connecting.cancel()
    await asyncio.wait([connecting])
    assert [fields.get("repeated") for fields in logged(caplog, "kafka_unavailable")] == [
        None,
        9,
        9,
    ]


async def test_equal_records_of_its_client_are_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR, "aiokafka")
    now = 0.0

    async def fail() -> None:
        nonlocal now
        for attempt in range(30):
            now = 60.0 * (attempt // 10)
            logging.getLogger("aiokafka").error("Unable to connect to node %d", 1)
            await asyncio.sleep(0)

    with collapsed(Repetitions(lambda: now)):
        client = asyncio.create_task(fail())
    await client
    refused = "Unable to connect to node 1"
    assert caplog.messages == [refused, f"{refused}  repeated=9", f"{refused}  repeated=9"]


def test_the_page_for_workers_lists_every_event() -> None:
    services = Path(__file__).parents[2] / "services"
    package = services / "execution_events"
    sources = [package / "sync.py", *(package / "publisher").rglob("*.py")]
    text = "\n".join(path.read_text() for path in sources)
    logged = set(re.findall(r'_log\.\w+\(\s*"(\w+)"', text))
    table = (services / "WORKERS.md").read_text().partition("## Logs")[2]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    assert {name.strip("`") for row in rows for name in row.split(", ")} == logged


async def test_records_of_other_clients_are_not_collapsed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "aiokafka")
    for _ in range(2):
        logging.getLogger("aiokafka").error("refused")
    assert len(caplog.records) == 2


async def test_a_full_spool_is_logged_once_a_minute(
    tmp_path: Path,
    unused_port: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(spooled, "_RETRY_DELAY", 0)
    settings = {
        "EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{unused_port}",
        "EXECUTION_EVENTS_SPOOL_DIR": str(tmp_path),
        "EXECUTION_EVENTS_SPOOL_MAX_BYTES": "1048576",
        "EXECUTION_EVENTS_CLOSE_TIMEOUT": "1",
    }
    caplog.set_level(logging.INFO)
    async with Publisher.from_settings(settings) as publisher:
        delivery, full = publisher._delivery, 0
        assert isinstance(delivery, SpooledDelivery)
        while full < 5:
            try:
                await publisher.publish(changed(message="x" * 16384))
            except SpoolFullError:
                full += 1
                # The next commit has nothing to store, and succeeds.
                for _ in range(2):
                    await delivery.progress()
    assert events(caplog).count("spool_failed") == 1
    assert events(caplog).count("spool_recovered") <= 1


async def test_a_task_that_fails_again_and_again_is_logged_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(task, "_RESTART_DELAY", 0)
    failures, enough = 0, asyncio.Event()

    async def fail() -> None:
        nonlocal failures
        failures += 1
        if failures == 5:
            enough.set()
        raise ValueError("fault")

    restarting = RestartingTask(fail)
    async with asyncio.timeout(DEADLINE):
        await enough.wait()
    await restarting.stop()
    [fields] = logged(caplog, "task_restarted")
    assert fields["error"] == "ValueError: fault"


async def test_the_cancellation_of_all_tasks_is_no_error(
    tmp_path: Path, unused_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As `asyncio.run` does when the main coroutine has ended."""
    settings = {
        "EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{unused_port}",
        "EXECUTION_EVENTS_SPOOL_DIR": str(tmp_path),
        "EXECUTION_EVENTS_CLOSE_TIMEOUT": "1",
    }
    async with Publisher.from_settings(settings):
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for other in others:
            other.cancel()
        await asyncio.wait(others)
    own = [record for record in caplog.records if record.name.startswith("execution_events")]
    assert "ERROR" not in {record.levelname for record in own}
