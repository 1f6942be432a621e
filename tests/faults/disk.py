"""A tablespace on a disk of its own, small enough to be filled."""

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
    """The tablespace's name, and where it lies."""

    tablespace: str
    path: Path


def missing() -> str | None:
    """Why this machine cannot have one, None if it can."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "a small disk is mounted by root, on Linux"
    return None


@asynccontextmanager
async def small_disk(postgres: EmbeddedPostgres, parent: Path) -> AsyncIterator[Disk]:
    """Mount one below `parent`, which the server's account can pass through."""
    place = parent / "small-disk"
    place.mkdir(exist_ok=True)
    await _run("mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(place))
    try:
        data = place / "data"
        data.mkdir(mode=0o700)
        shutil.chown(data, postgres.home.owner())
        await execute(postgres.dsn(), f"CREATE TABLESPACE small_disk LOCATION '{data}'")
        try:
            yield Disk("small_disk", place)
        finally:
            empty(place)
            await execute(postgres.dsn(), "DROP TABLESPACE small_disk")
    finally:
        await _run("umount", "--lazy", str(place))


def fill(path: Path) -> None:
    """Leave no room on the disk."""
    with (path / _BALLAST).open("wb", buffering=0) as ballast:
        for size in (len(_PIECE), 4096, 1):
            try:
                while True:
                    ballast.write(_PIECE[:size])
            except OSError:
                continue


def empty(path: Path) -> None:
    """Make room again."""
    (path / _BALLAST).unlink(missing_ok=True)


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise RuntimeError(f"{command[0]} failed")
