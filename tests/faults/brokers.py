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
"""Seconds for a node to answer, on a busy machine."""


class _ProxiedKafka(EmbeddedKafka):
    """A cluster whose nodes have a second listener, advertised at the port of a proxy."""

    def __init__(self, directory: DataDirectory, ports: Sequence[tuple[int, int]]) -> None:
        """`ports` are each node's own of the second listener, and the proxy's."""
        super().__init__(
            directory,
            CACHE_DIR,
            brokers=len(ports),
            # A name of its own: each cluster is new.
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
            # A killed member need not hold its group up for long.
            "group.min.session.timeout.ms": "1000",
        }


class Broker:
    """One node, broker and controller, with a second listener that leads through a proxy."""

    def __init__(self, server: KafkaNode, proxy: Proxy) -> None:
        self.node = server.node
        self.proxy = proxy
        self._server = server

    def segment(self, topic: str, partition: int) -> Path:
        """Return the file of a partition's first records, which are all of an episode's."""
        return self._server.home / DATA / f"{topic}-{partition}" / f"{0:020}.log"

    async def start(self) -> None:
        """Start the process, and return at once."""
        await self._server.launch()

    async def until_ready(self) -> None:
        """Wait until the node answers and its cluster has a group coordinator."""
        await self._server.until_ready()

    def quorum(self) -> tuple[int, int]:
        """Return the epoch of the controllers' quorum and its leader, as this node knows them."""
        metadata = self._server.home / DATA / "__cluster_metadata-0" / "quorum-state"
        state = json.loads(metadata.read_text())
        return state["leaderEpoch"], state["leaderId"]

    def signal(self, number: signal.Signals) -> None:
        """Send `number` to the process."""
        self._server.process.kill(number)

    async def kill(self) -> None:
        """SIGKILL the process, and return once it has ended."""
        self.signal(signal.SIGKILL)
        await self._server.process.wait()

    async def stop(self) -> None:
        """Stop the process in order."""
        self.signal(signal.SIGCONT)
        await self._server.stop()


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
        """Return the newest epoch of the controllers' quorum and its leader; -1 for none."""
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
            # Before Kafka is stopped: a stopped process must go on to end in order.
            stack.callback(member.signal, signal.SIGCONT)
        yield Brokers(members)
