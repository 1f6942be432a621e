"""A PostgreSQL server for a single episode, with an optional standby or backup."""

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from execution_events.embedded import DataDirectory, EmbeddedPostgres
from execution_events.embedded.process import run
from tests.faults.database import EpisodeDatabase, execute, template
from tests.faults.proxy import Proxy
from tests.faults.source import Source
from tests.support.servers import data_directory


class OwnPostgres:
    """A server that the consumers reach through `proxy`, and the episode's database on it."""

    def __init__(self, postgres: EmbeddedPostgres, proxy: Proxy, database: EpisodeDatabase) -> None:
        self.postgres = postgres
        self.proxy = proxy
        self.database = database

    async def end(self) -> None:
        """Crash the server."""
        self.postgres.process.kill(signal.SIGKILL)
        await self.postgres.process.wait()

    async def backup(self, target: Path, *options: str, port: int | None = None) -> None:
        """Copy the running server into the new directory `target`, through `port`."""
        postgres = self.postgres
        binaries = Path(f"/proc/{postgres.process.pid}/exe").resolve().parent
        address = postgres.dsn().replace(f":{postgres.port}/", f":{port or postgres.port}/")
        await run(
            [
                binaries / "pg_basebackup",
                f"--pgdata={target}",
                "--checkpoint=fast",
                "--wal-method=stream",
                f"--dbname={address}",
                *options,
            ],
            cwd=postgres.home,
            user=postgres.home.owner() if os.geteuid() == 0 else None,
        )

    @asynccontextmanager
    async def standby(self) -> AsyncIterator["Standby"]:
        """Run an asynchronous standby of the server."""
        async with AsyncExitStack() as stack:
            link = await stack.enter_async_context(Proxy(self.postgres.port))
            path = stack.enter_context(tempfile.TemporaryDirectory(prefix="standby-"))
            directory = await stack.enter_async_context(DataDirectory(Path(path) / "data"))
            # In a directory that the server's account can reach, laid out like EmbeddedPostgres's.
            home = self.postgres.home.with_name(f"{self.postgres.home.name}-standby")
            home.mkdir(mode=0o700)
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            shutil.chown(home, self.postgres.home.owner())
            await self.backup(home / "data", "--write-recovery-conf", port=link.port)
            shutil.copy2(self.postgres.home / "password", home / "password")
            (directory.path / "postgresql").symlink_to(home)
            postgres = await stack.enter_async_context(EmbeddedPostgres(directory))
            yield Standby(postgres, link)

    async def restore(self, backup: Path) -> None:
        """Replace the stopped server's data with `backup` and start it."""
        data = self.postgres.home / "data"
        data.rename(data.with_name("data.lost"))
        backup.rename(data)
        await self.postgres.start()


class Standby:
    """A standby that follows its primary over `link`."""

    def __init__(self, postgres: EmbeddedPostgres, link: Proxy) -> None:
        self.postgres = postgres
        self.link = link

    async def promote(self) -> None:
        """Promote the standby; return when it accepts writes."""
        await execute(self.postgres.dsn(), "SELECT pg_promote()")


@asynccontextmanager
async def own_postgres(source: Source) -> AsyncIterator[OwnPostgres]:
    """Run a new server with a migrated database; delete its data at the end."""
    async with data_directory() as directory:
        postgres = EmbeddedPostgres(directory)
        try:
            async with postgres, Proxy(postgres.port) as proxy:
                name = await template(postgres, source)
                yield OwnPostgres(postgres, proxy, EpisodeDatabase(postgres.dsn(), name))
        finally:
            with suppress(RuntimeError):
                shutil.rmtree(postgres.home, ignore_errors=True)
