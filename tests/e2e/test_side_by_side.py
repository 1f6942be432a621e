"""Two versions of the service beside each other during a migration: wheels, on one group.

Both wheels are built from this tree; the newer one has a higher version and further migrations.
"""

import asyncio
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path

import pytest

from execution_events import wire
from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, until, until_stored
from tests.support.databases import Database
from tests.support.occurrences import Fetch, counts, producer
from tests.support.processes import COMMAND, Service, environment, run_cli
from tests.support.records import occurrence

ROOT = Path(__file__).parents[2]
ADDITIVE = {
    "0002_additive.sql": """
        ALTER TABLE event ADD COLUMN remark text;
        ALTER TABLE execution ADD COLUMN remarks bigint NOT NULL DEFAULT 0;
        CREATE TABLE remark (execution_id text PRIMARY KEY);
        CREATE INDEX event_elements ON event (execution_id, namespace, sha256(body));
    """
}
INCOMPATIBLE = {
    **ADDITIVE,
    "0003_incompatible.sql": """
-- compatible_from: 0.3.0
        ALTER TABLE event ALTER COLUMN remark SET DEFAULT '';
    """,
}
REFUSED = "requires execution-events 0.3.0 or newer, this is {}: upgrade execution-events"
EXECUTIONS = 50


def install(version: str, migrations: Mapping[str, str], directory: Path) -> Path:
    """Build a wheel of this tree and install it; return the directory to import it from."""
    tree = directory / f"tree-{version}"
    tree.mkdir()
    for name in ("services", "schemas"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    project = (ROOT / "pyproject.toml").read_text()
    project, replaced = re.subn(r'^version = ".*"$', f'version = "{version}"', project, flags=re.M)
    assert replaced == 1
    (tree / "pyproject.toml").write_text(project)
    for name, sql in migrations.items():
        (tree / "services/execution_events/store/schema/migrations" / name).write_text(sql)
    uv: list[str | Path] = [sys.executable, "-m", "uv", "--quiet"]
    python = ["--python", sys.executable]
    build = [*uv, "build", "--wheel", "--no-build-isolation", *python, "--out-dir", tree, tree]
    subprocess.run(build, check=True, capture_output=True)
    target = directory / version
    [wheel] = tree.glob("*.whl")
    install = [*uv, "pip", "install", *python, "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The directory of each version."""
    directory = tmp_path_factory.mktemp("wheels")
    versions: dict[str, Mapping[str, str]] = {"0.1.0": {}, "0.2.0": ADDITIVE, "0.3.0": INCOMPATIBLE}
    return {version: install(version, sql, directory) for version, sql in versions.items()}


class Version:
    """The commands of one wheel."""

    def __init__(self, path: Path, settings: Settings, logs: Path) -> None:
        self.name = path.name
        self._environment = environment(
            settings, PYTHONPATH=str(path), EXECUTION_EVENTS_LOG_LEVEL="debug"
        )
        self._log = logs / f"{self.name}.log"

    async def run(self, *arguments: str, code: int = 0) -> str:
        assert await run_cli("--version", env=self._environment) == f"{self.name}\n"
        return await run_cli(*arguments, env=self._environment, code=code)

    def service(self, name: str) -> Service:
        return Service((*COMMAND, name), self._log, self._environment)


async def until_storing(consumer: Service) -> None:
    """Return once a running consumer has stored further batches."""
    before = consumer.output.count("batch_stored")

    async def storing() -> bool:
        assert consumer.process.returncode is None, consumer.output
        return consumer.output.count("batch_stored") > before + 2

    await until(storing, "batches are stored")


async def until_refused(service: Service, text: str) -> None:
    """Return once a service has ended with 1, with this text as the last line."""
    async with asyncio.timeout(DEADLINE):
        assert await service.process.wait() == 1, service.output
    assert text in service.output.splitlines()[-1]


@asynccontextmanager
async def load(settings: Settings) -> AsyncIterator[Counter[int]]:
    """Publish recurrences of one event of each execution; the acknowledged ones are counted."""
    acknowledged: Counter[int] = Counter()
    stop = asyncio.Event()

    async def publish() -> None:
        async with producer(settings, enable_idempotence=True) as client:
            while not stop.is_set():
                sent = []
                for number in range(EXECUTIONS):
                    key, value = wire.encode(occurrence(execution_id=f"execution-{number}"))
                    sent.append(await client.send(settings.kafka.topic, key=key, value=value))
                await asyncio.gather(*sent)
                acknowledged.update(range(EXECUTIONS))

    publishing = asyncio.create_task(publish())
    try:
        yield acknowledged
    finally:
        stop.set()
        await publishing


@pytest.mark.more
@pytest.mark.timeout(600)
async def test_two_versions_share_a_group_during_a_migration(
    wheels: Mapping[str, Path],
    settings: Settings,
    database: Database,
    fetch: Fetch,
    tmp_path: Path,
) -> None:
    old, new, newest = (Version(path, settings, tmp_path) for path in wheels.values())
    migrating = configured(settings, database_url=database.owner)
    new_migration, newest_migration = (
        Version(wheels[version.name], migrating, tmp_path) for version in (new, newest)
    )
    async with load(settings) as acknowledged:
        async with new.service("consumer") as early:
            await until_refused(early, "run `execution-events migrate`")
        async with old.service("consumer") as first:
            await until_storing(first)
            assert "applied: 0002 additive\n" in await new_migration.run("migrate")
            await until_storing(first)
            async with new.service("consumer") as second:
                await until_storing(second)
                assert await first.stop() == 0
                await until_storing(second)
                await first.start()
                await until_storing(first)
                await until_storing(second)
                assert "applied: 0003 incompatible\n" in await newest_migration.run("migrate")
                await until_refused(first, REFUSED.format("0.1.0"))
                await until_refused(second, REFUSED.format("0.2.0"))
        for version, service in product((old, new), ("consumer", "reader")):
            async with version.service(service) as refused:
                await until_refused(refused, REFUSED.format(version.name))
        async with newest.service("consumer") as third:
            await until_storing(third)
    async with newest.service("consumer"):
        await until_stored(settings)
    assert sum(acknowledged.values()) > 100 * EXECUTIONS
    assert await counts(fetch) == acknowledged
