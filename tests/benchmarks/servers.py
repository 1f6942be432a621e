"""PostgreSQL for one benchmark, and processes that serve HTTP."""

import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from execution_events.embedded import EmbeddedPostgres
from tests.benchmarks import usage
from tests.benchmarks.trees import THIS, Tree
from tests.support import databases, postgresql
from tests.support.configuration import configured
from tests.support.consumers import until
from tests.support.databases import Database
from tests.support.processes import Service, environment
from tests.support.servers import data_directory


@dataclass(frozen=True)
class Postgres:
    """An embedded PostgreSQL with the product's default settings, fsync included."""

    server: EmbeddedPostgres
    directory: Path
    """On the same disk, for logs."""

    @property
    def pid(self) -> int:
        return self.server.process.pid

    @property
    def cpu(self) -> float:
        """Seconds of CPU that all its processes have used."""
        return usage.cpu_of_tree(self.pid)

    @property
    def administrator_url(self) -> str:
        return self.server.dsn()

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """Create a migrated, empty database; drop it at the end."""
        async with databases.empty(self.administrator_url) as database:
            await databases.migrate_as_owner(database)
            yield database

    def log(self, name: str) -> Path:
        """Return the path of a new file."""
        return self.directory / f"{name}-{secrets.token_hex(4)}.log"


@asynccontextmanager
async def postgres(**settings: str) -> AsyncIterator[Postgres]:
    """Start an empty server of the chosen version (`tests/support/postgresql.py`).

    `settings` are PostgreSQL's, added to the product's defaults.
    """
    async with (
        data_directory() as directory,
        EmbeddedPostgres(
            directory, settings=settings, packages=await postgresql.packages()
        ) as server,
    ):
        yield Postgres(server, directory.path.parent)


@dataclass(frozen=True)
class Serving:
    """A process that serves HTTP at `address`, `http://host:port`."""

    service: Service
    address: str

    @property
    def pid(self) -> int:
        return self.service.process.pid


@asynccontextmanager
async def serving(
    command: Sequence[str], log: Path, env: Mapping[str, str]
) -> AsyncIterator[Serving]:
    """Run a command that logs its `address`, a field of a line of JSON, once it serves."""
    async with Service(command, log, {**env, "EXECUTION_EVENTS_LOG_FORMAT": "json"}) as service:
        found: list[str] = []

        async def started() -> bool:
            if service.process.returncode is not None:
                raise RuntimeError(f"{' '.join(command)} ended:\n{service.output}")
            found.extend(addresses(service.output))
            return bool(found)

        await until(started, f"{' '.join(command)} serves")
        yield Serving(service, found[0])


def entries(log: str) -> list[dict[str, Any]]:
    """Return the entries of a log; skip every line that is not complete JSON."""
    lines = [line for line in log.splitlines(keepends=True) if line.startswith("{")]
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def addresses(log: str) -> list[str]:
    """Return the addresses in the entries of a log."""
    return [entry["address"] for entry in entries(log) if "address" in entry]


@asynccontextmanager
async def reader(
    postgres: Postgres, database: Database, tree: Tree = THIS, **given: Any
) -> AsyncIterator[Serving]:
    """Run a tree's `execution-events reader` on a database; `given` are further settings."""
    settings = configured(database_url=database.reader, reader_port=0, management_port=0, **given)
    async with serving(
        (*tree.command, "reader"), postgres.log("reader"), environment(settings)
    ) as found:
        yield found


@asynccontextmanager
async def module(
    name: str, *arguments: str, log: Path, database_url: str
) -> AsyncIterator[Serving]:
    """Run a module of the benchmarks that serves HTTP."""
    env = environment(configured(database_url=database_url), PYTHONPATH=str(THIS.root))
    command = (THIS.python, "-m", f"tests.benchmarks.{name}", *arguments)
    async with serving(command, log, env) as found:
        yield found
