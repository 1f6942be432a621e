"""A tablespace on a separate disk, small enough to fill."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from execution_events.embedded import EmbeddedPostgres
from tests.faults.database import execute

_SIZE = "96m"
_BALLAST = "ballast"
_PIECE = b"\0" * (1024 * 1024)


class Disk(NamedTuple):
    """A tablespace and the path of its disk."""

    tablespace: str
    path: Path


def missing() -> str | None:
    """Return the reason why this machine cannot mount a small disk, None if it can."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "mounting a small disk requires root on Linux"
    return None


@asynccontextmanager
async def small_disk(postgres: EmbeddedPostgres, parent: Path) -> AsyncIterator[Disk]:
    """Mount a small disk below `parent`, which the server's account must be able to traverse."""
    path = parent / "small-disk"
    path.mkdir(exist_ok=True)
    await _run("mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(path))
    try:
        data = path / "data"
        data.mkdir(mode=0o700)
        shutil.chown(data, postgres.home.owner())
        await execute(postgres.dsn(), f"CREATE TABLESPACE small_disk LOCATION '{data}'")
        try:
            yield Disk("small_disk", path)
        finally:
            empty(path)
            await execute(postgres.dsn(), "DROP TABLESPACE small_disk")
    finally:
        await _run("umount", "--lazy", str(path))


def fill(path: Path) -> None:
    """Fill the disk completely."""
    with (path / _BALLAST).open("wb", buffering=0) as ballast:
        for size in (len(_PIECE), 4096, 1):
            try:
                while True:
                    ballast.write(_PIECE[:size])
            except OSError:
                continue


def empty(path: Path) -> None:
    """Free the space again."""
    (path / _BALLAST).unlink(missing_ok=True)


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise RuntimeError(f"{command[0]} failed")
