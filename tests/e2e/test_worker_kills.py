"""Workers killed at random moments: every published event counts once."""

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from execution_events.embedded import EmbeddedKafka
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import until, until_stored
from tests.support.occurrences import Fetch
from tests.support.processes import Service, environment, run_cli, service
from tests.support.servers import kafka as start_kafka
from tests.support.spooling_worker import Journal
from tests.support.topics import make_topic

KILLS = 12
MORE_KILLS = 50
WORKERS = 2


@pytest.fixture
async def kafka() -> AsyncIterator[EmbeddedKafka]:
    """A broker of the test's own, which may be killed."""
    async with start_kafka() as kafka:
        yield kafka


@pytest.fixture
async def worker_settings(settings: Settings, kafka: EmbeddedKafka, tmp_path: Path) -> Settings:
    settings = configured(
        settings,
        kafka_bootstrap_servers=kafka.bootstrap_servers,
        spool_dir=str(tmp_path / "spool"),
    )
    await make_topic(settings, 3)
    return settings


async def kill(kafka: EmbeddedKafka) -> None:
    kafka.process.kill(signal.SIGKILL)
    await kafka.process.wait()


@asynccontextmanager
async def down(kafka: EmbeddedKafka) -> AsyncIterator[None]:
    await kill(kafka)
    yield
    await kafka.start()


@asynccontextmanager
async def restarting(kafka: EmbeddedKafka) -> AsyncIterator[None]:
    async def restart() -> None:
        while True:
            await kill(kafka)
            await kafka.start()
            await asyncio.sleep(random.uniform(0, 1))

    restarts = asyncio.create_task(restart())
    yield
    restarts.cancel()
    with suppress(asyncio.CancelledError):
        await restarts
    await kafka.stop()
    await kafka.start()


@asynccontextmanager
async def up(kafka: EmbeddedKafka) -> AsyncIterator[None]:
    yield


class Worker(Service):
    def __init__(self, settings: Settings, path: Path) -> None:
        self.journal = path.with_suffix(".journal")
        super().__init__(
            (sys.executable, "-m", "tests.support.spooling_worker", str(self.journal)),
            path.with_suffix(".log"),
            environment(configured(settings, database_url=None)),
        )

    async def kill_at_random(self, rng: random.Random) -> None:
        """SIGKILL the worker once it has published an event, and restart it."""
        before = len(Journal.read(self.journal).durable)

        async def has_published() -> bool:
            assert self.process.returncode is None, self.output
            return len(Journal.read(self.journal).durable) > before

        await until(has_published, "the worker publishes")
        await asyncio.sleep(rng.uniform(0, 0.5))
        await self.stop(signal.SIGKILL)
        await self.start()


def phases(count: int) -> Iterator[int]:
    """Yield the number of kills in each of three phases."""
    for phase in range(3):
        yield count // 3 + (phase < count % 3)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [KILLS, pytest.param(MORE_KILLS, marks=pytest.mark.more)])
async def test_published_events_count_once_through_kills(
    worker_settings: Settings,
    kafka: EmbeddedKafka,
    fetch: Fetch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kills: int,
) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    async with service("consumer", worker_settings, tmp_path / "consumer.log"):
        workers = [Worker(worker_settings, tmp_path / f"worker-{n}") for n in range(WORKERS)]
        for worker in workers:
            await worker.start()
        for state, share in zip((up, down, restarting), phases(kills), strict=True):
            async with state(kafka):
                for _ in range(share):
                    await rng.choice(workers).kill_at_random(rng)
        for worker in workers:
            await worker.stop(signal.SIGKILL)
        await run_cli("spool", "drain", "--timeout", "60", env=environment(worker_settings))
        await until_stored(worker_settings)

    stored = {row["name"]: row["count"] for row in await fetch("SELECT name, count FROM event")}
    begun: dict[str, int] = {}
    durable: dict[str, int] = {}
    for worker in workers:
        journal = Journal.read(worker.journal)
        begun |= journal.begun
        durable |= journal.durable
    with capsys.disabled():
        print(
            f"\n{len(durable)} events published, {len(stored) - len(durable)} more stored whose"
            f" publish was killed, {kills + WORKERS} kills, seed {seed}"
        )
    assert {name: count for name, count in durable.items() if stored.get(name) != count} == {}
    assert {name: count for name, count in stored.items() if begun.get(name) != count} == {}
