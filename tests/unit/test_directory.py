"""The data directory: its lock, its ports and its mode; and the directory of downloads."""

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from execution_events.embedded import (
    ChildProcess,
    DataDirectory,
    EmbeddedError,
    cache_directory,
)
from execution_events.embedded.directory import HOST

DEADLINE = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "instance"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port with a listener."""
    with socket.create_server((HOST, 0)) as server:
        yield server.getsockname()[1]


async def test_a_directory_is_created_for_its_owner(path: Path) -> None:
    async with DataDirectory(path):
        assert stat.S_IMODE(path.stat().st_mode) & 0o066 == 0


async def test_the_mode_of_an_existing_directory_does_not_change(path: Path) -> None:
    path.mkdir(parents=True)
    path.chmod(0o755)
    async with DataDirectory(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755


async def test_one_process_at_a_time_holds_a_directory(path: Path) -> None:
    async with DataDirectory(path):
        with pytest.raises(EmbeddedError, match=f"{path} is in use by another run"):
            await DataDirectory(path, patience=0.2).__aenter__()
    async with DataDirectory(path, patience=0):
        pass


async def test_waiting_is_announced_once_and_ends_with_the_lock(path: Path) -> None:
    lines: list[str] = []
    announced = asyncio.Event()

    def on_line(line: str) -> None:
        lines.append(line)
        announced.set()

    async def use() -> None:
        async with DataDirectory(path, on_line=on_line, patience=DEADLINE):
            pass

    async with DataDirectory(path):
        waiting = asyncio.create_task(use())
        async with asyncio.timeout(DEADLINE):
            await announced.wait()
        assert not waiting.done()
    await waiting
    assert lines == [f"waiting for the previous run on {path} to stop"]


async def test_a_running_server_holds_the_directory(path: Path) -> None:
    async with DataDirectory(path) as directory:
        server = ChildProcess(["/bin/sleep", "60"], inherit=[directory.lock])
        await server.start()
    with pytest.raises(EmbeddedError, match="in use"):
        await DataDirectory(path, patience=0.2).__aenter__()
    await server.stop()
    async with DataDirectory(path, patience=0):
        pass


async def test_a_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match="file"):
        await DataDirectory(tmp_path / "file" / "instance").__aenter__()


async def test_ports_are_remembered(path: Path) -> None:
    async with DataDirectory(path) as directory:
        first = directory.port("a"), directory.port("b")
    assert first[0] != first[1]
    async with DataDirectory(path) as directory:
        assert (directory.port("a"), directory.port("b")) == first


async def test_a_taken_port_is_replaced(path: Path, taken: int) -> None:
    path.mkdir(parents=True)
    (path / "ports.json").write_text(f'{{"a": {taken}}}')
    async with DataDirectory(path) as directory:
        new = directory.port("a")
        assert new != taken
        assert directory.port("a") == new


async def test_a_fixed_port_is_used_or_refused(path: Path, taken: int) -> None:
    async with DataDirectory(path) as directory:
        port = directory.port("a")
        assert directory.port("b", fixed=port) == port
        with pytest.raises(EmbeddedError, match=f"port {taken} for a is taken"):
            directory.port("a", fixed=taken)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every file")
async def test_a_directory_without_permission_is_named(path: Path) -> None:
    path.mkdir(parents=True)
    path.chmod(0o500)
    with pytest.raises(EmbeddedError, match="lock"):
        await DataDirectory(path).__aenter__()


def test_downloads_go_to_the_chosen_directory_else_the_users_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_directory("/chosen") == Path("/chosen")
    assert cache_directory(None) == Path("/caches/execution-events")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_directory(None) == Path("/home/someone/.cache/execution-events")
