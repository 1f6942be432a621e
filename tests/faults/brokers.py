"""Apache Kafka with one node or three, each a process that can be killed, stopped and restarted."""

import json
import signal
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from execution_events.embedded import DataDirectory, EmbeddedKafka, KafkaNode
from execution_events.embedded.kafka import DATA, Node
from tests.faults.proxy import HOST, Proxy
from tests.support.configuration import CACHE_DIR

_READY_TIMEOUT = 90
"""Seconds until a node responds, on a busy machine."""


class _ProxiedKafka(EmbeddedKafka):
    """A cluster whose nodes have a second listener, advertised at the port of a proxy."""

    def __init__(self, directory: DataDirectory, ports: Sequence[tuple[int, int]]) -> None:
        """`ports` has, for each node, the port of its second listener and that of its proxy."""
        super().__init__(
            directory,
            CACHE_DIR,
            brokers=len(ports),
            # A unique name, so that each cluster starts empty.
            name=f"kafka-{len(ports)}-{uuid.uuid4()}",
            heap_mib=384,
            timeout=_READY_TIMEOUT,
        )
        self._ports = ports

    def properties(self, node: Node, nodes: Sequence[Node]) -> dict[str, str]:
        own = super().properties(node, nodes)
        port, proxy_port = self._ports[node.id - 1]
        listeners = f"{own['listeners']},PROXIED://{HOST}:"
        protocols = own["listener.security.protocol.map"]
        return own | {
            "listeners": f"{listeners}{port}",
            "advertised.listeners": f"{listeners}{proxy_port}",
            "listener.security.protocol.map": f"{protocols},PROXIED:PLAINTEXT",
            # A killed member must not delay its group for long.
            "group.min.session.timeout.ms": "1000",
        }


class Broker:
    """One node, broker and controller, with a second listener behind a proxy."""

    def __init__(self, server: KafkaNode, proxy: Proxy) -> None:
        self.node = server.node
        self.proxy = proxy
        self._server = server

    def segment(self, topic: str, partition: int) -> Path:
        """Return a partition's first segment, which holds all records of an episode."""
        return self._server.home / DATA / f"{topic}-{partition}" / f"{0:020}.log"

    async def start(self) -> None:
        """Start the process and return immediately."""
        await self._server.launch()

    async def until_ready(self) -> None:
        """Wait until the node responds and its cluster has a group coordinator."""
        await self._server.until_ready()

    def quorum(self) -> tuple[int, int]:
        """Return this node's view of the controller quorum: epoch and leader."""
        metadata = self._server.home / DATA / "__cluster_metadata-0" / "quorum-state"
        state = json.loads(metadata.read_text())
        return state["leaderEpoch"], state["leaderId"]

    def signal(self, number: signal.Signals) -> None:
        """Send `number` to the process."""
        self._server.process.kill(number)

    async def kill(self) -> None:
        """SIGKILL the process and wait until it has ended."""
        self.signal(signal.SIGKILL)
        await self._server.process.wait()

    async def stop(self) -> None:
        """Shut the process down cleanly."""
        self.signal(signal.SIGCONT)
        await self._server.stop()


class Brokers:
    """All nodes of one cluster."""

    def __init__(self, nodes: Sequence[Broker]) -> None:
        self.nodes = nodes

    @property
    def bootstrap_servers(self) -> str:
        """The nodes' own addresses, unaffected by network faults."""
        return ",".join(f"{HOST}:{broker.node.port}" for broker in self.nodes)

    @property
    def proxied_servers(self) -> str:
        """The addresses of the nodes' proxies."""
        return ",".join(f"{HOST}:{broker.proxy.port}" for broker in self.nodes)

    def controller(self) -> tuple[int, int]:
        """Return the newest epoch of the controller quorum and its leader, -1 for none."""
        return max(broker.quorum() for broker in self.nodes)

    def by_id(self, node_id: int) -> Broker:
        """Return the node with this id."""
        [found] = [broker for broker in self.nodes if broker.node.id == node_id]
        return found


@asynccontextmanager
async def brokers(directory: DataDirectory, count: int) -> AsyncIterator[Brokers]:
    """Run a new cluster of `count` nodes in `directory`; enter once it is ready."""
    async with AsyncExitStack() as stack:
        ports = [
            (directory.port(f"{count}-proxied-{n}"), directory.port(f"{count}-proxy-{n}"))
            for n in range(1, count + 1)
        ]
        proxies = [await stack.enter_async_context(Proxy(*pair)) for pair in ports]
        kafka = _ProxiedKafka(directory, ports)
        await stack.enter_async_context(kafka)
        members = [Broker(*pair) for pair in zip(kafka.nodes, proxies, strict=True)]
        for member in members:
            # Before Kafka is stopped: a process under SIGSTOP cannot shut down.
            stack.callback(member.signal, signal.SIGCONT)
        yield Brokers(members)
