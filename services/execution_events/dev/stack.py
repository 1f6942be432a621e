"""The servers and services of `dev`: start order, endpoints and stop."""

import asyncio
import json
import secrets
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from execution_events.dev import demo
from execution_events.dev.supervisor import Say, printer, supervised
from execution_events.embedded import (
    DataDirectory,
    EmbeddedKafka,
    EmbeddedPostgres,
    ProgressLine,
    cache_directory,
    running,
)
from execution_events.errors import ExecutionEventsError, HaltError
from execution_events.kafka.topic import DAY_MS, create_topic
from execution_events.operations.migration import migrate_database
from execution_events.settings import (
    PREFIX,
    TOPIC_PARTITIONS,
    TOPIC_RETENTION_DAYS,
    DatabaseSettings,
    Settings,
)
from execution_events.store.schema.migrate import UnreleasedSchemaError
from execution_events.store.schema.provision import provision_database

_DATABASE = "execution_events"
_OWNER = "execution_events_owner"
_READER_PORT = 8080
_ENDPOINTS = "endpoints.json"


@dataclass(frozen=True, kw_only=True)
class DevOptions:
    """The options of `dev`; `reader_port` None prefers the last run's, 0 picks a free one."""

    data_dir: Path
    reader_port: int | None
    demo: bool
    infra_only: bool
    colour: bool


@dataclass
class Endpoints:
    """The content of `endpoints.json`; None for a service that does not run."""

    kafka: str
    topic: str
    database: str
    ops: str
    reader: str | None = None
    console: str | None = None


async def run_stack(settings: Settings, options: DevOptions, stop: asyncio.Event) -> int:
    """Run everything until `stop` is set, then stop it in reverse order."""
    say = printer(options.colour)
    running_stack = asyncio.create_task(_run(settings, options, say))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running_stack, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not running_stack.done():
        say("dev", "stopping")
        running_stack.cancel()
    try:
        await running_stack
    except asyncio.CancelledError:
        say("dev", f"stopped; the data stays in {options.data_dir}")
    return 0


async def _run(settings: Settings, options: DevOptions, say: Say) -> None:
    async with AsyncExitStack() as stack:
        directory = await stack.enter_async_context(
            DataDirectory(options.data_dir, on_line=lambda line: say("dev", line))
        )
        # A run that was killed leaves its own.
        (directory.path / _ENDPOINTS).unlink(missing_ok=True)
        say("dev", f"starting Kafka and PostgreSQL in {directory.path}")
        kafka = EmbeddedKafka(
            directory,
            cache_directory(settings.cache_dir),
            on_line=lambda line: say("kafka", line),
            progress=ProgressLine(sys.stdout),
        )
        postgres = EmbeddedPostgres(directory, on_line=lambda line: _say_postgres(say, line))
        await stack.enter_async_context(running(kafka, postgres))
        brokers = replace(settings.kafka, bootstrap_servers=kafka.bootstrap_servers)
        settings = replace(settings, kafka=brokers)
        passwords = _passwords(directory.path)
        owner_url = postgres.dsn(_DATABASE, _OWNER, passwords["owner"])
        await asyncio.gather(
            _create_topic(settings, say),
            _create_database(postgres, owner_url, passwords, directory.path),
        )
        endpoints = Endpoints(
            kafka=kafka.bootstrap_servers,
            topic=settings.kafka.topic,
            database=owner_url,
            ops=postgres.dsn(_DATABASE, "execution_events_ops", passwords["ops"]),
        )
        tasks = [
            asyncio.create_task(_watch("Kafka", kafka)),
            asyncio.create_task(_watch("PostgreSQL", postgres)),
        ]
        stack.push_async_callback(_cancel, tasks)
        if not options.infra_only:
            reader_port = _reader_port(directory, options.reader_port)
            endpoints.reader = f"http://127.0.0.1:{reader_port}"
            tasks += await stack.enter_async_context(
                _services(settings, directory, postgres, passwords, reader_port, say)
            )
        if options.demo:
            await demo.publish_seed(settings)
            await _wait_until_served(demo.SEED_EXECUTION, f"{endpoints.reader}/v1/executions")
            tasks.append(asyncio.create_task(demo.run_workers(settings)))
        stack.enter_context(_endpoints_file(directory.path, endpoints))
        _announce(say, endpoints, options)
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task


@asynccontextmanager
async def _services(
    settings: Settings,
    directory: DataDirectory,
    postgres: EmbeddedPostgres,
    passwords: dict[str, str],
    reader_port: int,
    say: Say,
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run the consumer and the reader, each with the database role made for it."""
    management = {name: directory.port(f"{name}-management") for name in ("consumer", "reader")}
    variables = {
        name: {
            f"{PREFIX}KAFKA_BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            f"{PREFIX}DATABASE_URL": postgres.dsn(
                _DATABASE, f"execution_events_{role}", passwords[role]
            ),
            f"{PREFIX}READER_HOST": "127.0.0.1",
            f"{PREFIX}READER_PORT": str(reader_port),
            f"{PREFIX}MANAGEMENT_HOST": "127.0.0.1",
            f"{PREFIX}MANAGEMENT_PORT": str(management[name]),
        }
        for name, role in (("consumer", "writer"), ("reader", "reader"))
    }
    async with AsyncExitStack() as stack:
        yield list(
            await asyncio.gather(
                *(
                    stack.enter_async_context(
                        supervised(
                            name,
                            variables[name],
                            f"http://127.0.0.1:{management[name]}/readyz",
                            say,
                        )
                    )
                    for name in variables
                )
            )
        )


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _create_topic(settings: Settings, say: Say) -> None:
    """Create the topic; an existing one keeps its configuration, such as another retention."""
    differences = await create_topic(
        settings.kafka,
        partitions=TOPIC_PARTITIONS,
        replication=1,
        min_insync_replicas=1,
        retention_ms=TOPIC_RETENTION_DAYS * DAY_MS,
    )
    for name, found, wanted in differences or ():
        say("dev", f"topic {settings.kafka.topic}: {name} is {found}, not {wanted}; left unchanged")


async def _create_database(
    postgres: EmbeddedPostgres, owner_url: str, passwords: dict[str, str], directory: Path
) -> None:
    await provision_database(postgres.dsn(), _DATABASE, _OWNER, passwords["owner"])
    settings = DatabaseSettings(
        url=owner_url,
        writer_password=passwords["writer"],
        reader_password=passwords["reader"],
        ops_password=passwords["ops"],
    )
    try:
        await migrate_database(settings)
    except UnreleasedSchemaError as error:
        raise HaltError(
            f"the database in {directory} has a schema that was never released and cannot be"
            " updated: delete the directory, or choose another with --data-dir"
        ) from error


def _passwords(directory: Path) -> dict[str, str]:
    """Return the roles' passwords: random, created once, readable only by the directory's owner."""
    file = directory / "passwords.json"
    if not file.exists():
        roles = ("owner", "writer", "reader", "ops")
        _write_private(file, {role: secrets.token_urlsafe(24) for role in roles})
    passwords: dict[str, str] = json.loads(file.read_text())
    return passwords


def _reader_port(directory: DataDirectory, wanted: int | None) -> int:
    if wanted:
        return directory.port("reader", wanted)
    return directory.port("reader", preferred=_READER_PORT if wanted is None else None)


async def _watch(name: str, server: EmbeddedKafka | EmbeddedPostgres) -> None:
    """Wait until the server ends, and raise an error with its last lines."""
    code = await server.process.wait()
    raise ExecutionEventsError(
        f"{name} exited with code {code}. Its last lines:\n{server.process.last_lines}"
    )


async def _wait_until_served(execution_id: str, executions_url: str) -> None:
    """Wait until the reader lists events of the execution."""

    def body() -> bytes:
        url = f"{executions_url}/{execution_id}/events"
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310
            content: bytes = response.read()
            return content

    async with asyncio.timeout(30):
        while await asyncio.to_thread(body) == b"[]":
            await asyncio.sleep(0.05)


def _say_postgres(say: Say, line: str) -> None:
    """Print a line of PostgreSQL's log, unless its level is LOG."""
    if " LOG:  " not in line:
        say("postgresql", line)


@contextmanager
def _endpoints_file(directory: Path, endpoints: Endpoints) -> Iterator[None]:
    file = directory / _ENDPOINTS
    _write_private(file, asdict(endpoints))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _write_private(file: Path, content: object) -> None:
    """Write JSON that only the owner can read; replace the file atomically."""
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.touch(0o600, exist_ok=False)
    new.write_text(json.dumps(content, indent=2) + "\n")
    new.replace(file)


def _announce(say: Say, endpoints: Endpoints, options: DevOptions) -> None:
    say("dev", "ready:")
    say("dev", f"  Kafka       {endpoints.kafka}, topic {endpoints.topic}")
    user, _, address = endpoints.ops.partition("@")
    say("dev", f"  PostgreSQL  {user.rpartition(':')[0]}:…@{address}  (read-only: the ops views)")
    if endpoints.reader is not None:
        say("dev", f"  reader      {endpoints.reader}")
    say("dev", f"  passwords   {options.data_dir / _ENDPOINTS}")
    if options.demo:
        say("dev", "try:")
        say("dev", f"  curl {endpoints.reader}/v1/executions/{demo.SEED_EXECUTION}/events")
