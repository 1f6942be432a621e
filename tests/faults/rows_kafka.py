"""Faults of Kafka, of the network in front of it, and of the workers that write to it."""

import asyncio
import signal

from tests.faults.brokers import Broker
from tests.faults.episode import Episode, NoFaultError, Row, Server
from tests.faults.rows_postgres import black_hole
from tests.faults.worker import WorkerProcess

_BLACK_HOLE = 30  # seconds
_STOPPED = 20  # seconds
_WORKER_LIVES = 12


async def _reset(episode: Episode) -> None:
    cut = 0
    for _ in range(5):
        await asyncio.sleep(episode.rng.uniform(0.1, 0.8))
        cut += sum(broker.proxy.cut() for broker in episode.brokers.nodes)
    if not cut:
        raise NoFaultError("no connection was open")
    episode.evidence["connections reset"] = cut


async def _black_hole(episode: Episode) -> None:
    directions, permanent = black_hole(episode)
    [broker] = episode.brokers.nodes
    async with broker.proxy.black_hole(*directions, permanent=permanent):
        await asyncio.sleep(_BLACK_HOLE)


async def kill_broker(episode: Episode) -> None:
    """SIGKILL the only node and start it again."""
    [broker] = episode.brokers.nodes
    await asyncio.sleep(episode.rng.uniform(0, 1))
    await _down([broker], episode.rng.uniform(0, 3))


async def _stop_broker(episode: Episode) -> None:
    [broker] = episode.brokers.nodes
    broker.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(_STOPPED)
    finally:
        broker.signal(signal.SIGCONT)


async def _kill_leader(episode: Episode) -> None:
    node = await episode.topic.coordinator(episode.group)
    leaders = await episode.topic.leaders()
    led = [partition for partition, leader in leaders.items() if leader == node]
    if not led:
        raise NoFaultError(f"node {node} coordinates the group and leads no partition")
    episode.evidence["killed"] = f"node {node}, coordinator, leader of {led}"
    await _down([episode.brokers.by_id(node)], episode.rng.uniform(4, 8))


async def _kill_two(episode: Episode) -> None:
    two = episode.rng.sample(list(episode.brokers.nodes), 2)
    episode.evidence["killed"] = [broker.node.id for broker in two]
    await _down(two, episode.rng.uniform(3, 8))


async def _down(brokers: list[Broker], seconds: float) -> None:
    await asyncio.gather(*(broker.kill() for broker in brokers))
    await asyncio.sleep(seconds)
    for broker in brokers:
        await broker.start()
    await asyncio.gather(*(broker.until_ready() for broker in brokers))


async def _kill_worker(episode: Episode) -> None:
    worker = WorkerProcess(episode.environment(), episode.directory)
    left = killed = 0
    while killed < 2 or (left == 0 and killed < _WORKER_LIVES):
        async with worker.running() as process:
            await _until_it_publishes(episode, worker)
            await asyncio.sleep(episode.rng.uniform(0, 0.2))
            process.kill(signal.SIGKILL)
            await process.wait()
        killed += 1
        left = worker.left()
    episode.evidence["left in the spool"] = left
    if not left:
        raise NoFaultError("nothing was in flight")
    episode.healed()
    code, output = await episode.command("spool", "drain", str(worker.spools))
    if code != 0:
        episode.violations.append(f"the spool was not drained: {output}")
    episode.published = worker.journal()


async def _until_it_publishes(episode: Episode, worker: WorkerProcess) -> None:
    """Return once the worker has published an event in its current life."""
    before = len(worker.journal().durable)

    async def publishes() -> bool:
        return len(worker.journal().durable) > before

    await episode.until(publishes, 30, "the worker publishes")


async def _nothing(episode: Episode) -> None:
    """Inject no fault: it is in the records."""
    await episode.until_moving(1000)


ROWS = (
    Row("kafka-reset", "Connections to Kafka reset (RST)", 5, _reset, proxied=Server.KAFKA),
    Row(
        "kafka-black-hole",
        "Network black hole of 30 s before Kafka",
        5,
        _black_hole,
        proxied=Server.KAFKA,
    ),
    Row("broker-kill", "SIGKILL the broker", 20, kill_broker, alone=True),
    Row("broker-stop", "SIGSTOP the broker for 20 s", 10, _stop_broker, alone=True),
    Row(
        "worker-kill",
        "SIGKILL a worker with records in flight, then drain its spool",
        15,
        _kill_worker,
    ),
    Row("poison", "1 % of the records are poison", 10, _nothing, poison=0.01),
)
ROWS_OF_THREE = (
    Row(
        "three-leader",
        "3 brokers: SIGKILL the group coordinator, also a leader",
        5,
        _kill_leader,
        brokers=3,
        alone=True,
    ),
    Row(
        "three-min-isr",
        "3 brokers: SIGKILL two, below min.insync.replicas",
        5,
        _kill_two,
        brokers=3,
        alone=True,
    ),
)
